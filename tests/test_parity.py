"""gpt2flat against PyTorch and Hugging Face, which run in another process: never two thread pools in one."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import parity
import pytest
import test_openmp

from gpt2flat import GPT2Config, Model
from gpt2flat.data import huggingface_tokenizer
from gpt2flat.data.tokens import ArrayShard
from gpt2flat.evaluation import text
from gpt2flat.formats import bf16
from gpt2flat.kernels import available_isas, backend

REFERENCE = Path(__file__).with_name("reference.py")
RUNS = SINGLE, DOUBLE, HUGGINGFACE = "plain:float32", "plain:float64", "huggingface:float32"
KEEP = (1, 10)
# V maxT L NH C; B T; std; share of ignored targets; AdamW settings. Head sizes 12, 5, 13, 17, 3, 63; B*T beyond one
# chunk of logits, T beyond one block of attention; the least batch that attends. A high rate: ten updates go far
CASES = {
    "wide": ((97, 23, 2, 5, 60), (3, 17), 0.2, 0.1, dict(lr=1e-3, weight_decay=0.1, grad_clip=1.0)),
    "deep": ((131, 9, 3, 7, 35), (5, 9), 0.1, 0.0, dict(lr=1e-3, beta1=0.8, beta2=0.95, eps=1e-7)),
    "long": ((61, 211, 1, 2, 26), (7, 199), 0.2, 0.3, dict(lr=1e-3, weight_decay=0.1, decay_all=True)),
    "ragged": ((1009, 33, 5, 3, 51), (1, 33), 0.2, 0.0, dict(lr=1e-3)),
    "least": ((3, 2, 1, 1, 3), (1, 2), 0.2, 0.0, dict(lr=1e-3)),
    "hard": ((211, 40, 4, 4, 252), (2, 39), 0.2, 0.0, dict(lr=1e-3)),
}
HARD = "hard"  # float32 PyTorch itself is 2e-5 away from float64 in the gradients, and ten updates are chaos


def torch_process(*arguments) -> None:
    done = subprocess.run([sys.executable, REFERENCE, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def flags(settings: dict) -> list[str]:
    """update()'s settings as reference.py takes them."""
    words = []
    for name, value in settings.items():
        words += [f"--{name.replace('_', '-')}", *([] if value is True else [repr(value)])]
    return words


def updates_of(name: str) -> int:
    return 1 if name == HARD else max(KEEP)


def config(V, maxT, L, NH, C) -> GPT2Config:
    return GPT2Config(block_size=maxT, vocab_size=V, n_layer=L, n_head=NH, n_embd=C)


def prepare(folder: Path, model: Model, B: int, T: int, ignored: float):
    """Writes the model and a batch; returns the batch."""
    model.save(folder / "model.bin")
    tokens, targets = parity.batch(B, T, model.config.vocab_size, ignored)
    np.savez(folder / "batch.npz", tokens=tokens, targets=targets)
    return tokens, targets


def read(folder: Path) -> SimpleNamespace:
    """What prepare and the torch process left there."""
    with np.load(folder / "numbers.npz", allow_pickle=False) as file:
        torch = {run: {key.removeprefix(f"{run}/"): file[key] for key in file if key.startswith(run)} for run in RUNS}
    with np.load(folder / "batch.npz", allow_pickle=False) as batch:
        return SimpleNamespace(path=folder / "model.bin", torch=torch, **batch)


@pytest.fixture(scope="module")
def numbers(tmp_path_factory):
    """All cases on disk, and what PyTorch and Hugging Face make of them in one process: case -> run -> numbers; "saved": the folder
    of the models of parity.SAVED."""
    folder, lines = tmp_path_factory.mktemp("cases"), []
    for name, (shape, (B, T), std, ignored, settings) in CASES.items():
        model = Model.init(config(*shape))
        parity.fill(model.params, shape[0], std)
        (folder / name).mkdir()
        prepare(folder / name, model, B, T, ignored)
        paths = (folder / name / file for file in ("model.bin", "batch.npz", "numbers.npz"))
        updates = ["--updates", updates_of(name), "--keep", *KEEP]
        lines.append(shlex.join(map(str, ["train", *paths, "--runs", *RUNS, *updates, *flags(settings)])))
    (folder / "saved").mkdir()
    lines.append(shlex.join(["saved", str(folder / "saved")]))  # in the same process: to start one takes longer than all of it
    (folder / "lines").write_text("\n".join(lines))
    torch_process("lines", folder / "lines")
    return {name: read(folder / name) for name in CASES} | {"saved": folder / "saved"}


@pytest.mark.parametrize("attention", ["flash", "standard"])
@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("name", CASES)
def test_small_models_agree(numbers, name, isa, attention):
    case = numbers[name]
    model = Model.load(case.path, attention=attention, threads=2, kernels=backend(isa=isa))
    assert model.kernels.isa == isa
    found = parity.numbers_of(model, case.tokens, case.targets, CASES[name][-1], updates_of(name), KEEP)
    single, double, huggingface = case.torch[SINGLE], case.torch[DOUBLE], case.torch[HUGGINGFACE]
    assert set(found) == set(single) == set(huggingface)
    assert not parity.beyond_bounds(found, double, single), "further from float64 than the bounds and twice PyTorch"
    assert not parity.beyond_torch(found, single, double), "further from float64 than PyTorch"
    if name != HARD:
        assert not parity.beyond_bounds(found, single), "further from PyTorch than the bounds"
        assert not parity.beyond_bounds(found, huggingface), "further from Hugging Face than the bounds"


def test_perplexity_is_transformers(tmp_path):
    """Its windows have n_positions ids, so one input less than the model could take."""
    model = Model.init(config(97, 23, 2, 5, 60), threads=1)
    parity.fill(model.params, 97, 0.2)
    model.save(tmp_path / "model.bin")
    ids = np.random.default_rng(4).integers(0, 97, 130)
    np.save(tmp_path / "ids.npy", ids)
    strides = (22, 9, 1)
    torch_process("slide", *(tmp_path / name for name in ("model.bin", "ids.npy", "out.npy")), "--stride", *strides)
    for stride, (perplexity, count) in zip(strides, np.load(tmp_path / "out.npy"), strict=True):
        found = text.measure(model, [ArrayShard(ids)], text.Windows(22, stride), 4, None)
        assert (found["tokens"], found["perplexity"]) == (count, pytest.approx(perplexity, rel=1e-5))


@pytest.fixture
def scratch(tmp_path):
    """A folder that is gone after the test, also when it fails: a gigabyte lies in it."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def test_gpt2_124m_agrees(scratch):
    """The size people train: logits, all gradients and ten losses at B=4 T=64, one process after the other."""
    model = Model.init("d12", threads=2)
    tokens, targets = prepare(scratch, model, 4, 64, 0.0)
    files = [scratch / name for name in ("model.bin", "batch.npz", "numbers.npz")]
    torch_process("train", *files, "--runs", SINGLE, "--keep")
    found = parity.numbers_of(model, tokens, targets, {}, keep=())
    del model
    with np.load(files[-1], allow_pickle=False) as torch:  # one tensor at a time is read
        names = {key: key.removeprefix(f"{SINGLE}/") for key in torch}
        assert set(names.values()) == set(found)
        bad = [line for key, name in names.items() for line in parity.beyond_bounds(found, {name: torch[key]})]
    assert not bad, "further from PyTorch than the bounds"


# the second: no count is a multiple of 16; the third: fewer than 16 numbers in a tensor, which PyTorch draws in pairs
# (even counts: of an odd one llm.c forgets the spare number, PyTorch's generator keeps it)
@pytest.mark.parametrize("shape", [(257, 64, 4, 4, 128), (97, 23, 2, 5, 35), (5, 3, 2, 1, 2)])
def test_init_is_pytorch_stream(shape, tmp_path):
    torch_process("init", tmp_path / "init.npz", "--shape", *shape)
    model = Model.init(config(*shape), seed=42)
    with np.load(tmp_path / "init.npz", allow_pickle=False) as torch:
        assert torch.files == list(model.params)
        for name, view in model.params.items():
            np.testing.assert_allclose(view, torch[name], rtol=1e-5, atol=2e-8, err_msg=name)  # float32 log, cos, sin


def test_bfloat16_is_pytorchs(tmp_path):
    """Bit for bit; a NaN stays one, but PyTorch's payload depends on its own instruction set."""
    every = np.arange(1 << 16, dtype=np.uint32) << 16
    lows = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)  # around each tie
    bits = np.concatenate([(every[:, None] | lows).ravel(), np.random.default_rng(0).integers(0, 1 << 32, 1 << 18, np.uint32)])
    np.save(tmp_path / "bits.npy", bits)
    torch_process("bf16", tmp_path / "bits.npy", tmp_path / "out.npy")
    theirs, ours = np.load(tmp_path / "out.npy"), bf16.encode(bits.view(np.float32))
    number = ~np.isnan(bits.view(np.float32))
    assert np.array_equal(ours[number], theirs[number])
    assert (theirs[~number] & 0x7FFF > 0x7F80).all() and (ours[~number] == 0x7FC0).all()


@pytest.mark.parametrize("name", parity.SAVED)
def test_what_others_save_computes_the_same(numbers, name):
    saved = numbers["saved"]
    with np.load(saved / f"{name}.npz", allow_pickle=False) as truth:
        tokens, logits, greedy = truth["tokens"], truth["logits"], truth["greedy"]
    model = Model.load(saved / name, threads=1)
    found = model.logits(tokens)
    rows, sizes = parity.distances("logits", {"logits": found}, {"logits": logits})
    assert (rows <= 1e-5 * sizes).all(), f"a row is off by {(rows / sizes).max():.2g} of its norm"
    ids = greedy[:, :3].astype(np.int32)
    for _ in range(greedy.shape[1] - 3):
        ids = np.concatenate([ids, model.logits(ids, last=True).argmax(-1)[:, None].astype(np.int32)], 1)
    assert np.array_equal(ids, greedy)


@pytest.mark.parametrize("name", ["bpe json", "bpe pair"])
def test_a_byte_level_bpe_gives_the_same_ids(numbers, name):
    folder = numbers["saved"]
    with np.load(folder / "bpe.npz", allow_pickle=False) as truth:
        rows = np.split(truth["ids"], np.cumsum(truth["lengths"])[:-1])
    tokenizer, why = huggingface_tokenizer.find(folder / name, 1500)
    assert tokenizer is not None, why
    strings = json.loads((folder / "strings.json").read_text())
    assert len(strings) == len(rows)
    wrong = [text for text, row in zip(strings, rows, strict=True) if not np.array_equal(tokenizer.encode(text), row)]
    assert not wrong, f"{len(wrong)} of {len(rows)}: {wrong[:5]!r}"


@pytest.mark.parametrize("ours_first", [True, False], ids=["gpt2flat first", "torch first"])
def test_one_openmp_runtime_beside_torch(ours_first, monkeypatch):
    test_openmp.check_beside("torch", ours_first, monkeypatch)
