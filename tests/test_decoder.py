"""Decoder against the full forward: every position, ragged prompts, beams, contexts beyond the block size; same bits; misuse."""

import numpy as np
import pytest

import harness
from gpt2flat import GPT2Config, Model
from gpt2flat.errors import CapacityError, DataError, KernelArgError, NonFiniteError, UsageError
from gpt2flat.generation.decoder import Decoder, first_seen
from gpt2flat.generation.packed import unpack_rows

V, BLOCK = 97, 40
SHAPE = GPT2Config(block_size=BLOCK, vocab_size=V, n_layer=2, n_head=3, n_embd=51)
BY_ISA = pytest.mark.parametrize("native", harness.backends(), ids=lambda native: native.isa)


def made(config=SHAPE, scale=4.0, **options) -> Model:
    """Random weights, larger than in a fresh model, so that logits differ."""
    model = Model.init(config, seed=5, **{"threads": 1} | options)
    rng = np.random.default_rng(1)
    for name, view in model.params.items():
        if name.endswith("b"):
            view[...] = rng.standard_normal(view.shape) * 0.1
        elif not name.startswith("ln"):
            view *= scale
    return model


def ids_of(rows: int, n: int, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, V, (rows, n))


def off(got: np.ndarray, want: np.ndarray) -> float:
    """The largest distance of a row, relative to the row's norm."""
    return float((np.linalg.norm(got - want, axis=-1) / np.linalg.norm(want, axis=-1)).max())


def decoded(model, ids: np.ndarray, lengths, **options) -> list[np.ndarray]:
    """Logits after prompts of these lengths and after every further id, row by row: (what is left, V)."""
    decoder, n = Decoder(model, len(ids), **options), np.array(lengths)
    rows = np.arange(len(ids))
    found = [decoder.prefill([row[:k] for row, k in zip(ids, n)]).copy()]
    for _ in range(ids.shape[1] - max(lengths)):
        found.append(decoder.step(ids[rows, n]).copy())
        n += 1
    return list(np.stack(found, 1))


# --- against the full forward


@BY_ISA
def test_every_position_is_that_of_the_full_forward(native):
    model, ids, lengths = made(kernels=native, threads=2), ids_of(3, BLOCK), [1, 17, 9]
    full = model.logits(ids)
    for row, got, n in zip(full, decoded(model, ids, lengths), lengths):
        assert off(got, row[n - 1 : n - 1 + len(got)]) < 2e-6


def test_blocks_of_keys_end_where_they_may():
    config = GPT2Config(block_size=400, vocab_size=V, n_layer=1, n_head=2, n_embd=32)
    model, ids = made(config), ids_of(1, 400)
    (got,) = decoded(model, ids, [190])
    assert off(got, model.logits(ids)[0, 189:]) < 2e-6


def test_the_text_is_that_of_the_full_forward():
    model, prompt = made(), ids_of(1, 4)
    decoder, known = Decoder(model, 1), prompt[0].tolist()
    logits = decoder.prefill(prompt)
    for _ in range(BLOCK - 4):
        known.append(int(logits[0].argmax()))
        logits = decoder.step(known[-1:])
    want = prompt[0].tolist()
    while len(want) < len(known):
        want.append(int(model.logits(np.array([want]), last=True)[0].argmax()))
    assert known == want and len(set(known)) > 5


def test_a_bf16_model_reads_prompts_in_bf16():
    """Its head and its steps multiply in float32."""
    model, plain, ids = made(precision="bf16"), made(), ids_of(2, 12)
    bf16, fp32 = (m.logits(ids, last=True) for m in (model, plain))
    got = Decoder(model, 2).prefill(list(ids))
    assert 1e-4 < off(got, fp32) < 0.02 and off(got, bf16) < 0.02 and off(bf16, fp32) > 1e-4


# --- same bits


@pytest.mark.parametrize("weights", ["fp32", "bf16", "int8"])
def test_same_bits_for_any_threads_batch_and_wide_instruction_set(weights):
    ids, lengths = ids_of(9, 30), [3, 20, 1, 9, 9, 14, 2, 20, 7]
    wide = [native for native in harness.natives() if native.isa.startswith("avx")] or harness.natives()[:1]
    want = decoded(made(kernels=wide[0]), ids, lengths, weights=weights)
    for native in wide:
        for threads in (1, 2, 3):
            got = decoded(made(kernels=native, threads=threads), ids, lengths, weights=weights)
            assert all(np.array_equal(a, b) for a, b in zip(want, got)), (native.isa, threads)
    model = made(kernels=wide[-1], threads=2)
    for rows in ([0], [4], [1, 7], [8, 2, 5], [0, 1, 2, 3, 4]):
        got = decoded(model, ids[rows], [lengths[row] for row in rows], weights=weights)
        for row, logits in zip(rows, got):
            both = min(len(logits), len(want[row]))
            assert np.array_equal(logits[:both], want[row][:both]), rows


def test_a_prompt_read_at_once_or_in_groups_has_the_same_bits(monkeypatch):
    model, ids = made(), ids_of(7, 20)
    want = Decoder(model, 7).prefill(list(ids)).copy()
    monkeypatch.setattr("gpt2flat.generation.decoder.TOKENS", 50)
    assert np.array_equal(Decoder(model, 7).prefill(list(ids)), want)


@BY_ISA
@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_packed_weights_are_the_matrices_they_mean(native, weights):
    """fp32 with the matrices that the packed rows stand for: its bits, or with int8, where x is rounded too, nearly its logits; prompts are
    read with the parameters as they are."""
    model, ids = made(kernels=native), ids_of(2, 20)
    decoder = Decoder(model, 2, weights=weights)
    got = decoded(model, ids, [5, 5], weights=weights)
    packed, pack = decoder._cache.sections["packed"], decoder._cache._dims["PACK"]
    meant = {}
    for name in ("qkvw", "attprojw", "fcw", "fcprojw", "head"):
        C = model.params["wte" if name == "head" else name].shape[-1]
        meant[name] = unpack_rows(packed[name].reshape(-1, packed[name].shape[-1]), C, pack)
    plain = Decoder(model, 2)
    logits = [plain.prefill(list(ids[:, :5]))]
    before = model.params.floats.copy()
    wte = model.params["wte"].copy()
    for name, rows in meant.items():
        if name != "head":
            model.params[name][...] = rows.reshape(model.params[name].shape)
    for t in range(5, 20):  # the embedding stays as it is, the head is what was packed
        logits.append(_step_with_head(plain, ids[:, t], wte, meant["head"]))
    model.params.floats[:] = before
    got, want = np.stack(got)[:, 1:], np.stack(logits[1:], 1)
    assert np.array_equal(got, want) if weights == "bf16" else 1e-3 < off(got, want) < 0.02, off(got, want)


def _step_with_head(decoder, ids, wte, head) -> np.ndarray:
    decoder.step(ids)
    view = decoder._cache.model.params["wte"]
    view[: len(head)] = head
    decoder._cache.model.run(decoder._cache._step[-1:])
    view[...] = wte
    return decoder._cache.token["logits"].copy()


@pytest.mark.parametrize("weights, bound", [("bf16", 0.0025), ("int8", 0.008)])
def test_the_error_of_packed_weights_is_small_and_told(weights, bound):
    error = Decoder(made(), 1, weights=weights).error
    assert set(error) == {"qkvw", "attprojw", "fcw", "fcprojw", "head", "all"} and all(
        0 < e < bound for e in error.values()
    )
    assert Decoder(made(), 1).error == {}


# --- contexts


def test_the_rule_of_the_context():
    for block in (1, 2, 3, 7, 40):
        half = max(1, block // 2)
        for n in range(1, 5 * block):
            s = first_seen(n, block)
            assert (
                s % half == 0 and 1 <= n - s <= block and (s == 0 or n - (s - half) > block) and (n > block or s == 0)
            )


def test_a_text_outgrows_the_block_size():
    """At every length the logits are those of the window, whether it was filled by steps, by one prompt or beside others."""
    model, ids = made(), ids_of(3, 3 * BLOCK)
    decoder, rows, n = Decoder(model, 3), np.arange(3), np.array([3, BLOCK, 2 * BLOCK + 5])
    logits = decoder.prefill([row[:k] for row, k in zip(ids, n)])
    for _ in range(BLOCK - 6):
        for row in rows:
            seen = ids[row, first_seen(int(n[row]), BLOCK) : n[row]]
            assert off(logits[row], model.logits(seen[None], last=True)[0]) < 2e-6
        logits = decoder.step(ids[rows, n])
        n += 1
        assert (decoder.lengths == n).all()
    logits, alone = logits.copy(), Decoder(model, 1)
    alone.prefill([ids[0, :3]])
    for t in range(3, n[0]):
        last = alone.step(ids[:1, t])
    assert n[0] < BLOCK and np.array_equal(logits[0], last[0])


def test_reading_anew_has_the_bits_of_a_prompt_and_leaves_the_others():
    model, ids = made(), ids_of(2, BLOCK + 1)
    decoder = Decoder(model, 2)
    decoder.prefill([ids[0, :BLOCK], ids[1, :7]])
    got = [decoder.step([ids[0, BLOCK], ids[1, 7]]).copy(), decoder.step([3, ids[1, 8]]).copy()]
    want = Decoder(model, 1).prefill([ids[0]]).copy()
    other = Decoder(model, 1)
    other.prefill([ids[1, :7]])
    steps = [other.step(ids[1, n : n + 1]).copy() for n in (7, 8)]
    assert np.array_equal(got[0][0], want[0])
    assert all(np.array_equal(a[1], b[0]) for a, b in zip(got, steps))


def test_a_prompt_of_any_length_is_read():
    model = made()
    long = ids_of(1, 10 * BLOCK)
    got = Decoder(model, 1).prefill(list(long))
    seen = long[:, first_seen(10 * BLOCK, BLOCK) :]
    assert off(got, model.logits(seen, last=True)) < 2e-6


# --- beams


@pytest.mark.parametrize("sources", [[1, 0, 2, 3], [3, 3, 3, 3], [2, 0, 1, 1], [0, 1, 2, 3]])
def test_rows_go_on_from_what_others_held(sources):
    model, ids, n = made(), ids_of(4, 30), np.array([5, 21, 1, 12])
    decoder = Decoder(model, 4)
    logits = decoder.prefill([row[:k] for row, k in zip(ids, n)])
    before = logits.copy()
    decoder.select(np.array(sources))
    assert np.array_equal(logits, before) and (decoder.lengths == n[sources]).all()
    got = [decoder.step([7, 8, 9, 10]).copy(), decoder.step([1, 2, 3, 4]).copy()]
    for row, source in enumerate(sources):
        alone = Decoder(model, 1)
        alone.prefill([ids[source, : n[source]]])
        want = [alone.step([7 + row]).copy(), alone.step([1 + row]).copy()]
        assert all(np.array_equal(a[row], b[0]) for a, b in zip(got, want)), row


@pytest.mark.parametrize("weights", ["fp32", "int8"])
def test_rows_come_and_go(weights):
    """One prompt becomes four rows, then two, then three: each with the bits that it has alone."""
    model, ids = made(), ids_of(4, 40)
    decoder, paths = Decoder(model, 4, weights=weights), [list(ids[0, :9])]
    got = [decoder.prefill([ids[0, :9]])[0].copy()]
    for n, sources in enumerate(([0, 0, 0, 0], [3, 1], [1, 0, 1], [2])):
        decoder.select(np.array(sources))
        paths = [[*paths[source], int(ids[row, 20 + n])] for row, source in enumerate(sources)]
        logits = decoder.step([path[-1] for path in paths])
        assert logits.shape == (len(sources), V) and (decoder.lengths == 10 + n).all()
        got += [logits[-1].copy()]
    assert decoder.prefill([ids[1, :5], ids[2, :7]]).shape == (2, V)
    alone = Decoder(model, 1, weights=weights)
    want = [alone.prefill([ids[0, :9]])[0].copy()] + [alone.step([i])[0].copy() for i in paths[0][9:]]
    assert np.array_equal(want[0], got[0]) and np.array_equal(want[-1], got[-1])


def test_a_beam_that_outgrows_the_block_size_takes_its_ids_along():
    model, ids = made(), ids_of(2, BLOCK + 3)
    decoder = Decoder(model, 2)
    decoder.prefill([ids[0, : BLOCK - 2], ids[1, :5]])
    decoder.select(np.array([0, 0]))
    for t in range(BLOCK - 2, BLOCK + 3):
        got = decoder.step(np.repeat(ids[0, t], 2))
    got, alone = got.copy(), Decoder(model, 1)
    alone.prefill([ids[0, : BLOCK + 1]])
    for t in (BLOCK + 1, BLOCK + 2):
        want = alone.step(ids[0, t : t + 1])
    assert np.array_equal(got[0], want[0]) and np.array_equal(got[1], want[0])


# --- memory


def test_training_and_generation_alternate():
    model, ids = made(), ids_of(2, 20)
    other = made()
    losses = []
    for m, between in ((model, True), (other, False)):
        for _ in range(3):
            losses.append(m.forward_backward(ids[:, :-1], ids[:, 1:]))
            if between:
                Decoder(m, 2).prefill([row[:9] for row in ids])
            m.update(lr=1e-3)
            if between:
                decoder = Decoder(m, 2)
                decoder.prefill([row[:9] for row in ids])
                m.logits(ids)  # plans another batch behind the cache
                assert off(decoder.step(ids[:, 9]), m.logits(ids[:, :10], last=True)) < 2e-6
    assert losses[:3] == losses[3:] and np.array_equal(model.params.floats, other.params.floats)


def test_a_decoder_of_the_same_size_moves_nothing():
    model, ids = made(), ids_of(2, 8)
    Decoder(model, 2)
    model.forward_backward(ids, ids)
    acts = model.acts["stream"]
    before = acts.copy()
    Decoder(model, 2).prefill(list(ids))
    assert np.array_equal(acts, before) and np.shares_memory(acts, model.acts["stream"])
    larger = Decoder(model, 3)
    assert model.acts["stream"].shape == acts.shape, "planned again, for the same batch"
    ours = [section.floats for name, section in larger._cache.sections.items() if name != "params"]
    assert not any(np.shares_memory(model.scratch.floats, floats) for floats in ours)


def test_a_later_decoder_takes_the_memory_of_the_first():
    model = made()
    first, second = Decoder(model, 2), Decoder(model, 2)
    second.prefill(list(ids_of(2, 3)))
    for call in (lambda: first.prefill(list(ids_of(2, 3))), lambda: first.step([1, 2]), lambda: first.select([0, 1])):
        with pytest.raises(UsageError, match="a later one of the same model"):
            call()


def test_what_cannot_fit_is_refused_with_a_breakdown(monkeypatch):
    model, ids = made(), ids_of(2, 8)
    decoder = Decoder(model, 2)
    want = decoder.prefill(list(ids)).copy()
    monkeypatch.setattr("gpt2flat.memory.arena.available_memory", lambda: (1 << 20, "a test"))
    with pytest.raises(
        CapacityError, match=r"take fewer rows, a smaller capacity, or a smaller model \(params .*kv .*token"
    ):
        Decoder(model, 1 << 16)
    assert np.array_equal(decoder.prefill(list(ids)), want)


def test_a_smaller_capacity_is_a_smaller_cache():
    model, ids = made(), ids_of(1, 30)
    decoder = Decoder(model, 1, capacity=16)
    assert decoder._cache.layouts["kv"].floats * 3 == Decoder(model, 1)._cache.layouts["kv"].floats
    decoder = Decoder(model, 1, capacity=16)
    decoder.prefill([ids[0, :15]])
    decoder.step(ids[0, 15:16])
    for call in (lambda: decoder.step([1]), lambda: decoder.prefill([ids[0, :17]])):
        with pytest.raises(KernelArgError, match="row 0 would hold 17 ids, expected at most its capacity 16"):
            call()
    assert Decoder(model, 1, capacity=10**9).prefill(list(ids_of(1, 99))).shape == (1, V)


# --- misuse


@pytest.mark.parametrize("wrong", [
    dict(rows=0), dict(rows=-1), dict(rows=1.5), dict(rows="2"), dict(rows=True), dict(rows=1 << 40),
    dict(capacity=0), dict(capacity=-3), dict(capacity="x"), dict(weights="int4"), dict(weights=None), dict(weights=[]),
], ids=str)  # fmt: skip
def test_what_makes_no_decoder(wrong):
    with pytest.raises(UsageError, match="rows = |capacity = |weights "):
        Decoder(made(), **{"rows": 1} | wrong)


def test_what_is_no_prompt_and_no_step():
    decoder = Decoder(made(), 2)
    with pytest.raises(UsageError, match="prefill first"):
        decoder.step([1, 2])
    for rows in (0, 3):
        with pytest.raises(KernelArgError, match=f"begin: {rows} rows, expected 1 to 2"):
            decoder.begin(rows)
    for prompts in ([], [[1], [2], [3]], [[1], []], [[1], [0.5]], [[1], [[2]]], [[1], "a"], [[1], None]):
        with pytest.raises(KernelArgError, match="prefill: .*prompts|prompts: expected"):
            decoder.prefill(prompts)
    for prompts in ([[1], [V]], [[-1], [0]]):
        with pytest.raises(DataError, match="prompts hold ids"):
            decoder.prefill(prompts)
    decoder.prefill([[1, 2], [3]])
    for ids in ([1], [1, 2, 3], [1.0, 2.0], [[1, 2]], None, "ab"):
        with pytest.raises(KernelArgError):
            decoder.step(ids)
    for wrong in ([0, V], [-1, 0]):
        with pytest.raises(DataError):
            decoder.step(wrong)
    for sources in ([], [0, 1, 1], [0.0, 1.0], [[0, 1]], None, "ab", [0, 2], [-1, 0], [True, False]):
        with pytest.raises(KernelArgError, match="select: .* expected 1 to 2 rows"):
            decoder.select(sources)
    assert (decoder.lengths == [2, 1]).all()


def test_a_damaged_weight_is_named_with_trace():
    model = made(trace=True)
    decoder = Decoder(model, 1)
    model.params["fcb"][0, 3] = np.nan
    with pytest.raises(NonFiniteError, match=r'layer 0, writing prompt\["fch"\]'):
        decoder.prefill([[1, 2]])
    model.params["fcb"][0, 3] = 0
    decoder.prefill([[1, 2]])
    model.params["fcb"][1, 3] = np.nan
    with pytest.raises(NonFiniteError, match=r'decode_linear_gelu, layer 1, writing token\["fch"\]'):
        decoder.step([1])
