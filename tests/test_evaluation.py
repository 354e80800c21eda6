"""What evaluate computes: exact sums, windows, losses against a slow float64 GPT-2; the same bits for any batch and threads."""

import math

import numpy as np
import pytest
import slow_gpt2
from hypothesis import given
from hypothesis import strategies as st
from samples import token_bytes

from gpt2flat import GPT2Config, Model
from gpt2flat.data.tokenizer import Tokenizer
from gpt2flat.data.tokens import ArrayShard, FileShard, TokenLoader
from gpt2flat.errors import DataError, KernelArgError, NonFiniteError, UsageError
from gpt2flat.evaluation import text
from gpt2flat.evaluation.scoring import ExactSum, Row, score
from gpt2flat.evaluation.steps import ByStep
from gpt2flat.evaluation.text import Windows
from gpt2flat.formats import bf16
from gpt2flat.training.loop import validate

V, LONGEST = 97, 24


def make(threads: int = 1, **options) -> Model:
    m = Model.init(
        GPT2Config(block_size=LONGEST, vocab_size=V, n_layer=2, n_head=2, n_embd=16), threads=threads, **options
    )
    for _name, view in m.params.items():
        view *= 6  # far from uniform
    return m


@pytest.fixture(scope="module")
def model() -> Model:
    return make()


@pytest.fixture(scope="module")
def ids() -> np.ndarray:
    return np.random.default_rng(3).integers(0, V, 150).astype(np.int32)


def losses_of(model, windows: Windows, *arrays, batch_size: int = 4) -> np.ndarray:
    rows = windows.rows([ArrayShard(ids) for ids in arrays], V)
    return np.concatenate(list(score(model, rows, batch_size, grain=windows.T)))


def test_steps_are_the_forward(model):
    """Rows of any lengths, with what is not predicted in between; `look` sees the logits in their order."""
    rng = np.random.default_rng(5)
    tokens = rng.integers(0, V, (4, LONGEST))
    targets = np.where(rng.random((4, LONGEST)) < 0.6, rng.integers(0, V, (4, LONGEST)), -1)
    targets[1], targets[2, 5:] = -1, -1
    expected, seen, found = model.losses(tokens, targets), [], {}
    for batch in (tokens, tokens[::-1]):
        steps = ByStep(model, "fp32")
        found[len(found)] = steps.losses(batch, targets if batch is tokens else targets[::-1])
    np.testing.assert_allclose(found[0], expected, rtol=2e-5, atol=2e-6)
    ends = np.cumsum((targets >= 0).sum(1))[:-1]
    assert [row.tolist() for row in np.split(found[0], ends)][::-1] == [
        row.tolist() for row in np.split(found[1], len(found[1]) - ends[::-1])
    ]
    looked = ByStep(model, "fp32").losses(tokens, targets, lambda logits: seen.append(logits.argmax(1)))
    assert looked.tolist() == found[0].tolist()
    assert np.concatenate(seen).tolist() == model.logits(tokens)[targets >= 0].argmax(1).tolist()


def round_to_bf16(floats: np.ndarray) -> None:
    bf16.decode_into(bf16.encode(floats), floats)


def test_packed_weights_are_what_is_measured(ids):
    """The losses of bf16 are those of a model with rounded matrices; those of int8 are near, and neither are fp32's."""
    exact, rounded = make(), make()
    for m in (exact, rounded):
        round_to_bf16(m.params["wte"])  # its rows are the inputs of both
    for name in ("qkvw", "attprojw", "fcw", "fcprojw"):
        round_to_bf16(rounded.params[name])
    windows = Windows(LONGEST, 10)
    whole, expected = (losses_of(m, windows, ids) for m in (exact, rounded))
    np.testing.assert_allclose(losses_of(ByStep(exact, "bf16"), windows, ids), expected, rtol=1e-4, atol=1e-5)
    coarse = losses_of(ByStep(exact, "int8"), windows, ids)
    assert 1e-4 < abs(coarse - whole).max() and coarse.mean() == pytest.approx(whole.mean(), rel=0.03)
    assert abs(expected - whole).max() > 1e-3


# --- sums ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=9), max_size=5))
def test_a_sum_is_exact(batches):
    total = ExactSum()
    for batch in batches:
        total.add(np.array(batch, np.float32))
    every = [x for batch in batches for x in batch]
    assert (float(total), total.count) == (math.fsum(every), len(every))


def test_a_sum_of_many_is_exact():
    values = np.random.default_rng(1).exponential(3, 200_000).astype(np.float32)
    total = ExactSum()
    for part in np.split(np.random.default_rng(2).permutation(values), [7, 50_000, 50_001]):
        total.add(part)
    assert float(total) == math.fsum(values.tolist())
    assert float(total) != float(np.cumsum(values, dtype=np.float64)[-1])  # so a plain sum would have been seen


# --- windows ---------------------------------------------------------------------------------------------------------


@given(st.integers(0, 60), st.integers(1, 12), st.integers(1, 12), st.none() | st.integers(1, 70))
def test_each_token_is_predicted_once(count, T, stride, limit):
    stride = min(stride, T)
    windows = Windows(T, stride, limit)
    shards = [ArrayShard(np.arange(count)), ArrayShard(np.arange(5))]
    rows = list(windows.rows(shards, 1000))
    found = [int(i) for row in rows for i in row.ids[row.known :]]
    wanted = [*range(1, count), *range(1, 5)][:limit]
    assert found == wanted and windows.predictions(shards) == len(wanted)
    for row in rows:
        assert 2 <= len(row.ids) <= T + 1 and len(row.ids) > row.known
        assert row.known >= min(T - stride + 1, int(row.ids[row.known]))  # of context, where there is as much


@pytest.mark.parametrize("T, stride", [(LONGEST, LONGEST), (LONGEST, 5), (LONGEST, 1), (7, 7), (7, 3), (1, 1)])
def test_losses_are_those_of_a_slow_forward(model, ids, T, stride):
    found = losses_of(model, Windows(T, stride), ids)
    slow = slow_gpt2.losses(dict(model.params.items()), 2, V, ids, T, stride)
    assert found.dtype == np.float32 and np.abs(found - slow).max() < 1e-5 * np.abs(slow).max()
    told = text.measure(model, [ArrayShard(ids)], Windows(T, stride), 3, None)
    assert told["loss"] == pytest.approx(slow.mean(), rel=1e-6) and told["tokens"] == len(ids) - 1
    assert told["perplexity"] == pytest.approx(math.exp(slow.mean()), rel=1e-5) and told["bits_per_byte"] is None


def test_a_smaller_stride_gives_more_context(model, ids):
    """Another rule than the last test's would be seen: strides differ by far more than it allows."""
    means = [losses_of(model, Windows(LONGEST, stride), ids).mean() for stride in (LONGEST, 5, 1)]
    assert min(abs(np.diff(means))) > 1e-3


def test_batches_and_threads_change_no_bit(ids):
    texts = [ids, ids[:40], ids[5:], ids[:2]]
    found = {
        losses_of(make(threads, recompute=recompute), Windows(LONGEST, stride), *texts, batch_size=B).tobytes()
        for stride in (7,)
        for threads, recompute, B in ((1, 0, 1), (1, 3, 5), (2, 3, 64), (3, 0, 2), (1, 3, 6))
    }
    assert len(found) == 1


def test_rows_may_change_places_within_batches(model, ids):
    rows = [Row(ids[: n + 2], 1 + n // 2) for n in np.random.default_rng(5).integers(0, LONGEST - 1, 40)]
    alone = [next(score(model, [row], 1, grain=1)) for row in rows]
    for B, grain, mix in ((1, 8, 1), (7, 8, 3), (40, 64, 1), (3, 1, 40)):
        found = list(score(model, rows, B, grain, mix))
        assert [x.tobytes() for x in found] == [x.tobytes() for x in alone]


def test_only_what_is_asked_is_predicted(model, ids):
    tokens, targets = ids[:24].reshape(2, 12), ids[1:25].reshape(2, 12).copy()
    every = model.losses(tokens, targets)
    assert every.shape == (24,) and math.fsum(every.tolist()) / 24 == model.forward(tokens, targets)
    targets[0, :5] = targets[1, 7:] = -1
    assert model.losses(tokens, targets).tobytes() == every[[*range(5, 12), *range(12, 19)]].tobytes()
    seen = []
    model.losses(tokens, targets, lambda logits: seen.append(logits.copy()))
    assert np.array_equal(np.concatenate(seen), model.logits(tokens)[targets >= 0])
    with pytest.raises(KernelArgError):
        model.losses(tokens, None)
    with pytest.raises(DataError):
        model.losses(tokens, np.full_like(targets, -1))


def test_more_predictions_than_logits_have_room_for():
    """1024 rows of logits are there at most; the losses are forward's, and a backward after them is refused."""
    m = Model.init(GPT2Config(block_size=64, vocab_size=7, n_layer=1, n_head=1, n_embd=4), threads=1)
    tokens, targets = np.random.default_rng(0).integers(0, 7, (2, 40, 64))
    targets[3:7] = -1
    sizes = []
    found = m.losses(tokens, targets, lambda logits: sizes.append(logits.shape))
    assert sizes == [(1024, 7), (1024, 7), (36 * 64 - 2048, 7)] and m.acts["held"][0] == 0
    m.forward(tokens, targets)
    assert found.tobytes() == m.acts["losses"][m.acts["targets"] >= 0].tobytes()
    m.losses(tokens, targets)
    with pytest.raises(UsageError):
        m.backward()


def test_a_model_gone_astray(ids):
    m = make()
    m.params["lnfw"][3] = math.nan
    with pytest.raises(NonFiniteError, match="gone astray"):
        losses_of(m, Windows(4, 4), ids)


# --- bytes -----------------------------------------------------------------------------------------------------------


def test_bits_per_byte_by_hand(model):
    """Tokens of 1, 3 and 2 bytes; end-of-text, id 2, has none and its loss is left out."""
    tokenizer = Tokenizer("table", (b"a", b"bcd", b"<|endoftext|>", b"ef"), 2)
    lengths = text.bytes_of_tokens(tokenizer)
    assert lengths.tolist() == [1, 3, 0, 2]
    ids = np.array([2, 0, 1, 2, 3, 3, 0], np.int32)
    lengths = np.concatenate([lengths, np.ones(V - 4, np.int64)])
    windows = Windows(4, 4)
    losses = losses_of(model, windows, ids).astype(float).tolist()
    told = text.measure(model, [ArrayShard(ids)], windows, 1, lengths)
    counted = [losses[0], losses[1], losses[3], losses[4], losses[5]]
    assert told["bytes"] == 1 + 3 + 2 + 2 + 1 and told["tokens"] == 6
    assert told["bits_per_byte"] == math.fsum(counted) / math.log(2) / 9
    assert told["loss"] == math.fsum(losses) / 6


# --- the trainer's validation ----------------------------------------------------------------------------------------


def test_it_agrees_with_the_trainers_validation(model, ids):
    """Batches of 2 x 6 side by side are windows of 6; the trainer takes whole batches only."""
    loader = TokenLoader([ArrayShard(ids)], 2, 6, V)
    for batches in (1, 5, -1):
        n = loader.batches if batches < 0 else batches
        told = text.measure(model, [ArrayShard(ids)], Windows(6, 6, n * 12), 5, None)
        assert told["loss"] == pytest.approx(validate(model, loader, batches), rel=1e-14)


def test_ids_of_another_vocabulary(model, put):
    path = put(token_bytes([1, 2, V, 3]))
    with pytest.raises(DataError, match=f"token 2 is id {V}, expected 0 to {V - 1}: the data was made with another"):
        text.measure(model, [FileShard(path)], Windows(4, 4), 1, None)
    assert text.measure(model, [FileShard(path)], Windows(4, 4, 1), 1, None)["tokens"] == 1
