"""The table of settings: defaults, flags in every spelling, what is refused and how, schedules, config.toml."""

import math
import re
import tomllib
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2flat.errors import UsageError
from gpt2flat.train import parser, read_flags
from gpt2flat.training.config import toml
from gpt2flat.training.names import OTHERS, REFUSED
from gpt2flat.training.schedule import learning_rate
from gpt2flat.training.settings import SETTINGS, resolve, unknown

SHAPE = {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64}
LLMC = {
    "-e": "init", "-i": "train_data", "-j": "val_data", "-o": "out", "-b": "batch_size", "-t": "seq_len", "-x": "steps",
    "-l": "lr", "-u": "warmup", "-q": "final_lr_fraction", "-k": "schedule", "-c": "weight_decay", "-v": "val_every",
    "-m": "val_batches", "-s": "sample_every", "-g": "sample_tokens", "-r": "recompute",
    "-d": "total_batch_size", "-sl": "skip_loss_z", "-sg": "skip_norm_z", "-a": "overfit", "-n": "checkpoint_every", "-nk": "keep",
    "-nm": "keep_major", "-y": "resume",
}  # fmt: skip
SCRATCH = dict(batch_size=12, seq_len=64, steps=2000, lr=1e-3, schedule="cosine", warmup=100, final_lr_fraction=0.1,
               beta1=0.9, beta2=0.99, weight_decay=0.1, grad_clip=1, val_every=250, sample_every=500,
               log_every=50)  # fmt: skip
CHECKPOINT = dict(batch_size=4, seq_len=64, steps=41, lr=1e-4, schedule="constant", beta1=0.9, beta2=0.999,
                  weight_decay=0, grad_clip=0, val_every=10, val_batches=5, sample_every=20)  # fmt: skip


@pytest.mark.parametrize("from_checkpoint, column", [(False, SCRATCH), (True, CHECKPOINT)])
def test_the_two_columns_of_defaults(from_checkpoint, column):
    s = vars(resolve({}, SHAPE | {"block_size": 1024}, from_checkpoint))
    assert {name: s[name] for name in column} == column


def test_settings_resolve_as_defaults_then_preset_then_flags():
    s = resolve({"n_embd": 32, "lr": 0.5}, SHAPE, False)
    assert (s.n_layer, s.n_embd, s.lr, s.beta2) == (4, 32, 0.5, 0.99)
    assert resolve({"block_size": 16}, SHAPE, False).seq_len == 16
    assert resolve({"block_size": 256}, SHAPE, False).seq_len == 64


def test_llmc_letters():
    assert {f"-{s.letter}": s.name for s in SETTINGS.values() if s.letter} == LLMC
    assert len({flag for row in REFUSED for flag in row.flags} | set(LLMC)) == sum(len(r.flags) for r in REFUSED) + len(LLMC)


def value_of(setting) -> str:
    if setting.pattern:
        return next(text for text in ("stop", "30m", "data", "flash", "tensorboard", "gpt2", "x") if re.fullmatch(setting.pattern, text))
    return setting.choices[0] if setting.choices else {int: str(int(setting.high) if setting.high and setting.high < 7 else 7), float: "0.5", str: "x", bool: "1"}[setting.kind]


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=str)
def test_every_setting_is_a_flag_in_both_spellings(setting):
    text = value_of(setting)
    want = {setting.name: setting.parse(text)}
    assert read_flags([setting.flag, text]) == want
    assert read_flags([f"--{setting.name}={text}"]) == want
    if setting.letter:
        assert read_flags([f"-{setting.letter}", text]) == want


def test_negative_numbers_and_switches():
    assert read_flags(["-x", "-1", "-m", "-1", "--decay-all"]) == {"steps": -1, "val_batches": -1, "decay_all": True}
    assert read_flags(["--decay_all", "0"]) == {"decay_all": False}


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row.flags[0])
def test_flags_that_are_not_served(row):
    for flag in row.flags:
        with pytest.raises(UsageError, match=flag) as caught:
            read_flags([flag, "3"])
        assert "leave it out" in str(caught.value) and "\n" not in str(caught.value)
        for fine in row.fine:
            assert read_flags([flag, fine, "-b", "2"]) == {"batch_size": 2}


def test_the_total_batch_is_whole_batches():
    from gpt2flat.training.settings import accumulation

    assert accumulation(resolve({"batch_size": 4, "total_batch_size": 768}, SHAPE, False)) == 3
    assert accumulation(resolve({}, SHAPE, False)) == 1
    with pytest.raises(UsageError, match="-size 700: expected a multiple of .* 256"):
        resolve({"batch_size": 4, "total_batch_size": 700}, SHAPE, False)


def test_a_line_of_llmcs_scripts_says_all_that_must_go():
    line = '-i a_*.bin -j b_*.bin -o log -v 250 -s 20000 -g 144 -h 1 -b 64 -t 1024 -d 524288 -r 0 -z 1 -c 0.1 -l 0.0006 -q 0.0 -u 700 -n 5000 -y 1 -e d12'  # noqa: E501  # fmt: skip
    with pytest.raises(UsageError) as caught:
        read_flags(line.split())
    refused = {part.split(":")[0] for part in str(caught.value).split("; ")}
    assert refused == {"-h 1", "-z 1"}
    for flag in refused:
        line = line.replace(f"{flag} ", "")
    flags = read_flags(line.split())
    assert (flags["init"], flags["batch_size"], flags["warmup"], flags["final_lr_fraction"]) == ("d12", 64, 700, 0)


@pytest.mark.parametrize("name", OTHERS)
def test_names_of_other_tools_say_which_flag_is_meant(name):
    for flag in ("--" + name, "--" + name.replace("_", "-"), f"--{name}=5"):
        with pytest.raises(UsageError) as caught:
            read_flags([flag, "5"] if "=" not in flag else [flag])
        assert OTHERS[name] in str(caught.value)
    with pytest.raises(UsageError, match=name):
        resolve({name: 5}, SHAPE, False)


def test_what_other_names_point_to_is_there():
    flags = {s.flag for s in SETTINGS.values()} | {flag for row in REFUSED for flag in row.flags}
    named = {word for target in OTHERS.values() for word in re.findall(r"[-a-z0-9]+", target) if word.startswith("--")}
    assert named <= flags


BAD = """
--bogus 1         --bogus        | --batch 4         --batch        | --step 4          --steps
--lrr 1           --lr           | config/train.py   train.py       | -b                --batch-size
-b x              whole number   | -b 0              at least 1     | -b 4.5            whole number
--lr nan          --lr           | --lr inf          below 1000000.0    | --lr 1e39         below 1000000.0    | --lr 1_0          a finite number       | --lr -1           at least 0
--beta1 1         below 1        | -k quadratic      cosine         | --max-time soon   a number of seconds
-k x              cosine         | --on-nonfinite skip  rollback:K | --backend numpy   auto, c        | --backend cuda    auto, c
--attention fast  flash          | --threads 0       at least 1     | -q 2              at most 1
--decay-all maybe 0 or 1         | --out=            --out          | -x -2             at least -1
-p 4              -p             | -zz 1             -zz            | -bq 8             -bq
"""
ROWS = [re.split(r"  +| (?=0 or)", row.strip()) for line in BAD.split("\n") if line for row in line.split("|")]


@pytest.mark.parametrize("argv, says", ROWS, ids=[row[0] for row in ROWS])
def test_bad_flags_are_one_line_that_names_them(argv, says):
    with pytest.raises(UsageError) as caught:
        read_flags(argv.split())
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_settings_that_do_not_go_together():
    for given_, says in (
        ({"seq_len": 65}, "block size"),
        ({"val_batches": 0}, "--val-every 0"),
        ({"n_layer": 0}, "--n-layer"),
    ):
        with pytest.raises(UsageError, match=says):
            resolve(given_, SHAPE, False)


def test_help_lists_every_flag():
    text = parser().format_help()
    assert all(s.flag in text for s in SETTINGS.values())


def test_unknown_names_get_a_suggestion():
    assert "--weight-decay" in unknown("--weigth-decay")
    assert unknown("--Batch_Size") == "--Batch_Size: write --batch-size"
    assert "--help" in unknown("--xyzzy")


# --- schedules -------------------------------------------------------------------------------------------------------


def schedule(**changes) -> list[float]:
    s = SimpleNamespace(**dict(schedule="cosine", lr=2.0, warmup=4, final_lr_fraction=0.1, steps=20) | changes)
    return [learning_rate(s, step) for step in range(s.steps)]


def test_cosine_is_llmcs():
    lrs = schedule()
    assert lrs[:5] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])
    assert lrs[12] == pytest.approx((2.0 + 0.2) / 2)
    assert lrs[13] == pytest.approx(0.2 + 0.5 * (1 + math.cos(math.pi * 9 / 16)) * 1.8)
    assert learning_rate(
        SimpleNamespace(schedule="cosine", lr=2.0, warmup=4, final_lr_fraction=0.1, steps=20), 20
    ) == pytest.approx(0.2)


def test_ends_of_the_schedules():
    assert schedule(final_lr_fraction=1.0, warmup=0) == [2.0] * 20
    assert schedule(schedule="constant", warmup=10) == [2.0] * 20
    assert schedule(warmup=0.2) == schedule(warmup=4)
    assert schedule(warmup=40)[-1] == pytest.approx(1.0)
    assert schedule(warmup=20)[-1] == 2.0


# --- config.toml -----------------------------------------------------------------------------------------------------


VALUES = st.one_of(st.text(), st.integers(-(2**60), 2**60), st.floats(allow_nan=False), st.booleans(), st.none())


@given(st.dictionaries(st.from_regex(r"[a-z_0-9]{1,9}", fullmatch=True), VALUES))
def test_toml_can_be_read_back(values):
    read = tomllib.loads(toml(values))
    assert read == {key: value for key, value in values.items() if value is not None}
    assert all(type(read[key]) is type(values[key]) for key in read)


def test_toml_of_text_that_is_not_unicode():
    assert tomllib.loads(toml({"path": "a\udcffb"})) == {"path": "a?b"}
