"""The presets as rows: names, shape, parameters, memory. What a batch takes on top is told by `info PRESET -b B -t T`."""

from ..arch import gpt2
from ..memory.arena import human

HEAD = ("preset", "layers", "heads", "channels", "block size", "vocabulary", "parameters", "weights", "training")


def presets() -> list[dict[str, object]]:
    """A row per shape, its names together. parameters: floats, the padding of the vocabulary included; weights_bytes: of a
    checkpoint; training_bytes: weights, gradients and AdamW's two averages."""
    names: dict[gpt2.GPT2Config, list[str]] = {}
    for name, config in gpt2.PRESETS.items():
        names.setdefault(config, []).append(name)
    return [
        dict(names=known, layers=c.n_layer, heads=c.n_head, channels=c.n_embd, block_size=c.block_size, vocabulary=c.vocab_size,
             parameters=c.num_parameters, weights_bytes=4 * c.num_parameters, training_bytes=16 * c.num_parameters)
        for c, known in names.items()
    ]  # fmt: skip


def words(row: dict[str, object]) -> list[str]:
    """A row of presets() as texts below HEAD."""
    counts = [f"{row[key]:,}" for key in ("layers", "heads", "channels", "block_size", "vocabulary", "parameters")]
    return [", ".join(row["names"]), *counts, human(row["weights_bytes"]), human(row["training_bytes"])]
