"""transformers' word on sampling and beams, in a process of its own.

python tests/reference_generation.py FOLDER: reads cases.json, rows.npz, model.bin there; writes scores.npz and beams.json"""

import json
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import reference
import torch
from transformers import LogitsProcessorList
from transformers.generation import logits_process as lp

# in the order in which transformers' generate applies them (GenerationMixin._get_logits_processor)
PROCESSORS = {
    "repetition_penalty": lp.RepetitionPenaltyLogitsProcessor, "temperature": lp.TemperatureLogitsWarper, "top_k": lp.TopKLogitsWarper,
    "top_p": lp.TopPLogitsWarper, "min_p": lp.MinPLogitsWarper,
}  # fmt: skip


def scores(settings: dict, logits: np.ndarray, seen: np.ndarray) -> np.ndarray:
    chain = LogitsProcessorList([make(settings[name]) for name, make in PROCESSORS.items() if name in settings])
    return chain(torch.from_numpy(seen), torch.from_numpy(logits.copy())).numpy()


def own_order(model, settings: dict) -> list[str]:
    """The processors that generate itself makes of settings, in its order."""
    with patch.object(LogitsProcessorList, "__call__", autospec=True, side_effect=lambda chain, ids, logits, **_: logits) as noted:
        model.generate(torch.tensor([[1]]), max_new_tokens=1, do_sample=True, pad_token_id=0, **settings)
    return [type(processor).__name__ for processor in noted.call_args.args[0]]


def search(model, case: dict) -> list:
    """[ids behind the prompt, score] of each returned beam."""
    prompt = torch.tensor([case["prompt"]])
    found = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, num_beams=case["beams"], num_return_sequences=case["n_best"],
        max_new_tokens=case["n"], length_penalty=case["length_penalty"], eos_token_id=case["eot"], pad_token_id=case["eot"],
        repetition_penalty=case.get("repetition_penalty", 1.0), output_scores=True, return_dict_in_generate=True,
    )  # fmt: skip
    rows = found.sequences[:, prompt.shape[1] :].tolist()
    return [[row, float(score)] for row, score in zip(rows, found.sequences_scores, strict=True)]


def main(folder: Path) -> None:
    cases = json.loads((folder / "cases.json").read_text())
    with np.load(folder / "rows.npz", allow_pickle=False) as rows:
        logits, seen = rows["logits"], rows["seen"]
    np.savez(folder / "scores.npz", **{str(i): scores(settings, logits, seen) for i, settings in enumerate(cases["sampling"])})
    model = reference.build("huggingface", folder / "model.bin", torch.float32)[0].model.eval()
    with torch.no_grad():
        found = {"order": own_order(model, cases["sampling"][-1]), "beams": [search(model, case) for case in cases["beams"]]}
    (folder / "beams.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
