"""Every kernel of the op table on every backend and instruction set here, against float64; and what must not change a bit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import harness
import truth
from gpt2flat import kernels
from gpt2flat.kernels.ops import KERNELS, OP_OF
from harness import Case

NATIVES = harness.backends()
WIDE = [native for native in NATIVES if native.isa.startswith("avx")]
BY_ISA = pytest.mark.parametrize("native", NATIVES, ids=lambda native: native.isa)
BY_KERNEL = pytest.mark.parametrize("name", KERNELS)


def check_everywhere(case: Case) -> None:
    """The reference on every backend, each with its own number of threads; the wide ones of C agree to the bit (that of bf16: in float32)."""
    written = {native.isa: harness.check(case, native, 1 + i) for i, native in enumerate(NATIVES)}
    same = [native for native in WIDE if native.isa != "avx512bf16" or not case.dims.get("BF16")]
    for one, other in zip(same, same[1:]):
        harness.assert_same_bits(f"{case}: {one.isa} and {other.isa}", written[one.isa], written[other.isa])


@pytest.mark.parametrize("case", harness.cases(), ids=str)
def test_kernel_meets_its_reference(case):
    check_everywhere(case)


def free_sizes(largest: int = 70):
    known = {dim: [n for n in sizes if n <= 200] for dim, sizes in harness.SIZES.items()}
    sizes = {dim: st.one_of(st.sampled_from(some), st.integers(1, largest)) for dim, some in known.items()}
    small = {"B": st.integers(1, 3), "KVH": st.integers(1, 3), "group": st.integers(1, 3), "extra": st.integers(0, 9),
             "pad": st.integers(0, 20), "P": st.integers(1, 5000), "PACK": st.integers(0, 2)}  # fmt: skip
    return st.fixed_dictionaries(sizes | small)


@BY_KERNEL
@given(free=free_sizes(), fill=st.sampled_from(harness.FILLS), acc=st.integers(0, 7), offset=st.integers(0, 15))
def test_kernel_meets_its_reference_at_any_shape(name, free, fill, acc, offset):
    acc %= 1 << len(KERNELS[name].accs)
    check_everywhere(Case(name, harness.dims_of(OP_OF[name], free), fill, acc, offset=offset))


# --- same bits


@BY_ISA
@BY_KERNEL
def test_same_bits_for_any_number_of_threads(name, native):
    op = OP_OF[name]
    for sizes in (harness.modest(op), list(harness.grid(op))[3]):
        case = Case(name, sizes)
        alone = harness.execute(case, native, 1)
        for threads in (2, 3, 8):  # execute asserts that so many worked
            harness.assert_same_bits(f"{case}: 1 and {threads} threads", alone, harness.execute(case, native, threads))


@BY_ISA
def test_same_bits_where_jobs_fill_their_rooms(native):
    """Each job has room for 6 of the 145 groups of columns: 24 jobs, which 2 and 3 threads could share evenly, are too few."""
    case = Case("linear_forward", (("N", 3), ("C", 768), ("OC", 145 * 16), ("BF16", 0)))
    alone, *others = [harness.execute(case, native, threads) for threads in (1, 2, 3)]
    for threads, other in enumerate(others, 2):
        harness.assert_same_bits(f"{case}: 1 and {threads} threads", alone, other)


@pytest.mark.parametrize("native", harness.natives(), ids=lambda native: native.isa)
@BY_KERNEL
def test_same_bits_with_a_smaller_team_than_was_planned_for(name, native):
    case = Case(name, list(harness.grid(OP_OF[name]))[3])
    alone = harness.execute(case, native, 1)
    for threads, limit in ((2, 1), (64, 1), (64, 3), (3, 64)):
        found = harness.execute(case, native, threads, limit=limit)
        harness.assert_same_bits(f"{case}: {limit} of {threads} threads", alone, found)


FEW_HEADS = dict(B=1, T=450, NH=2, KVH=1, HS=20)  # three blocks of keys, fewer heads than threads
ATTENTION_KERNELS = [name for name in KERNELS if name.startswith("attention")]


@BY_ISA
@pytest.mark.parametrize("BF16", [0, 1], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", ATTENTION_KERNELS)
def test_few_heads_have_the_same_bits_on_every_route(name, BF16, native):
    """Backward alone takes a head at a time; more threads than heads take blocks of keys, then chunks of queries."""
    case = Case(name, tuple((FEW_HEADS | {"BF16": BF16}).items()), acc=BF16)
    alone = harness.execute(case, native, 1)
    for threads in (*range(2, 9), 16, 64) if native.name == "c" else (2, 3):
        harness.assert_same_bits(f"{case}: 1 and {threads} threads", alone, harness.execute(case, native, threads))
    for limit in (1, 3) if native.name == "c" else ():
        found = harness.execute(case, native, 64, limit=limit)
        harness.assert_same_bits(f"{case}: {limit} of 64 threads", alone, found)


@BY_ISA
@pytest.mark.parametrize("QB, KB", [(16, 16), (16, 192), (64, 64), (48, 80), (128, 176), (512, 32)])
@pytest.mark.parametrize("name", ATTENTION_KERNELS)
def test_tiles_change_no_bit(name, QB, KB, native):
    """Not even the sign of a 0, which sums of numbers that are too small to multiply have."""
    for BF16, fill, threads in ((0, "normal", 1), (0, "small", 3), (1, "normal", 3)):
        sizes, tiles = FEW_HEADS | {"T": 261, "BF16": BF16}, {"QB": QB, "KB": KB}
        whole, cut = (Case(name, tuple(some.items()), fill, p_drop=0.2) for some in (sizes, sizes | tiles))
        harness.assert_same_bits(f"{cut}", *(harness.execute(case, native, threads) for case in (whole, cut)))


@BY_ISA
@BY_KERNEL
def test_same_bits_wherever_the_arrays_lie(name, native):
    cases = [Case(name, harness.modest(OP_OF[name]), offset=offset) for offset in (0, 1, 7)]
    alone, *others = [harness.execute(case, native, 2) for case in cases]
    for other in others:
        harness.assert_same_bits(f"{name} with shifted bases", alone, other)


CLASSIFIER = dict(N=47, C=21, V=199, Vp=208)


def classifier_inputs():
    given = harness.inputs(Case("classifier_train", tuple((CLASSIFIER | {"R": 47, "BF16": 0}).items())))
    return {k: given[k] for k in ("inp", "targets", "weight", "dlosses")}


def classify(native, route: str, R: int, BF16: int = 0) -> dict[str, np.ndarray]:
    """losses, lse, dinp, dweight by one visit ("train") or two, with or without the logits that forward held."""
    N, C, V, Vp = CLASSIFIER.values()
    given, upstream = classifier_inputs(), {}
    upstream["dlosses"] = given.pop("dlosses")
    work = dict(logits=np.full((R, Vp), np.nan, np.float32), held=np.zeros(1, np.int32))
    shapes = dict(losses=N, lse=N, dinp=(N, C), dweight=(Vp, C))
    made = {name: np.full(shape, np.nan, np.float32) for name, shape in shapes.items()}
    rest = dict(V=V, kernels=native, threads=2, BF16=BF16) | work | given
    forward, backward = ({n: made[n] for n in names} for names in (("losses", "lse"), ("dinp", "dweight")))
    if route == "train":
        kernels.run("classifier_train", **forward, **backward, **upstream, **rest)
        return made
    kernels.run("classifier_forward", **forward, **rest)
    assert work["held"][0] == (N if N <= R else 0)
    if route in ("again", "part"):  # nothing is held, or not everything
        work["held"][0] = 0 if route == "again" else N - 1
        work["logits"][:] = np.nan
    kernels.run("classifier_backward", **backward, lse=made["lse"], **upstream, **rest)
    assert work["held"][0] == 0, "dlogits were taken for logits"
    return made


@BY_ISA
@pytest.mark.parametrize("route", ["train", "held", "again", "part"])
@pytest.mark.parametrize("R", [47, 100, 16, 1], ids=lambda R: f"{-(-47 // R)}chunks")
def test_the_head_has_the_same_bits_on_every_route(native, route, R):
    for BF16 in (0, 1) if R == 16 else (0,):
        whole, parts = classify(native, "train", 47, BF16), classify(native, route, R, BF16)
        harness.assert_same_bits(f"{route}, chunks of {R}", whole, parts)


@BY_ISA
def test_held_logits_are_those_of_the_input(native):
    N, C, V, Vp = CLASSIFIER.values()
    given = classifier_inputs()
    given.pop("dlosses")
    work = dict(logits=np.full((N, Vp), np.nan, np.float32), held=np.zeros(1, np.int32))
    losses, lse = np.empty(N, np.float32), np.empty(N, np.float32)
    kernels.run("classifier_forward", losses=losses, lse=lse, V=V, kernels=native, **work, **given)
    harness.compare("logits", work["logits"][:, :V], truth.num(given["inp"]) @ truth.num(given["weight"][:V]).T)


# --- dropout


DROPPING = [op for op in harness.ops_with_backward() if any(arg.name == "p_drop" for arg in op.args("knob"))]
DROPPED = dict(B=2, T=197, N=41, C=53, NH=4, KVH=2, HS=9, BF16=0, QB=0, KB=0)


def dropped_case(op, form: str = "forward", **options) -> Case:
    return Case(
        f"{op.name}_{form}", tuple((dim, DROPPED[dim]) for dim in op.dims.split()), **{"p_drop": 0.4, **options}
    )


@pytest.mark.parametrize("acc", [0, 3])
@pytest.mark.parametrize("form", ["forward", "backward"])
@pytest.mark.parametrize("op", DROPPING, ids=lambda op: op.name)
def test_every_kernel_drops_what_the_contract_says(op, form, acc):
    """flash, standard, dropout and their backwards meet a reference that makes the mask from kernels.h in other words."""
    acc &= (1 << len(KERNELS[f"{op.name}_{form}"].accs)) - 1
    check_everywhere(dropped_case(op, form, acc=acc))


@BY_ISA
@pytest.mark.parametrize("op", DROPPING, ids=lambda op: op.name)
def test_a_mask_is_the_same_for_any_number_of_threads(op, native):
    for form in ("forward", "backward"):
        alone, *others = [harness.execute(dropped_case(op, form), native, threads) for threads in range(1, 9)]
        for threads, other in enumerate(others, 2):
            harness.assert_same_bits(f"{op.name}_{form}: 1 and {threads} threads", alone, other)


@BY_ISA
def test_dropout_multiplies_by_its_mask_and_adds_what_is_given(native):
    """Against NumPy to the bit; with p_drop = 0 it copies, or adds, to the bit, the sign of a 0 too."""
    rng = np.random.default_rng(1)
    inp, added = rng.standard_normal((2, 37, 1000)).astype(np.float32)
    inp[3], added[3] = -0.0, 0.0
    for p, key in ((0.25, 7), (0.9, -7), (0.0, 7)):
        knobs = dict(p_drop=np.float32([p]), key_drop=np.int32([key]), kernels=native, threads=2)
        keep = truth.kept(p, key, 0, 0, np.arange(inp.size)).reshape(inp.shape)
        want = inp * np.where(keep, 1 / (1 - np.float32(p)), np.float32(0))
        out, both = np.full_like(inp, np.nan), np.full_like(inp, np.nan)
        kernels.run("dropout_forward", out=out, inp=inp, **knobs)
        kernels.run("dropout_forward", out=both, inp=inp, added=added, **knobs)
        harness.assert_same_bits(
            f"p {p} on {native.isa}", {"out": out, "both": both}, {"out": want, "both": added + out}
        )
    assert np.array_equal(out.view(np.int32), inp.view(np.int32))


def mask(p: float, key: int = 12345, B=2, NH=4, T=70) -> np.ndarray:
    """(B, NH, the probabilities that a query sees)"""
    keep = truth.kept(p, key, np.arange(B * NH).reshape(B, NH, 1, 1), np.arange(T)[:, None], np.arange(T))
    return keep[..., *np.tril_indices(T)]


def near(share: float, p: float, count: int) -> bool:
    return abs(share - p) < 5 * np.sqrt(p * (1 - p) / count)


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_dropout_keeps_its_share(p):
    kept, flat = mask(p, T=200), truth.kept(p, 5, 0, 0, np.arange(200_000))
    shares = [kept, kept[0, 0], kept[..., -200:], flat, flat[:2000], flat[:192_000:768], flat[768:1536]]
    for share in shares:  # the last ones: a channel, a token
        assert near(share.mean(), 1 - p, share.size)


def test_dropout_differs_between_heads_batches_keys_places_and_neighbours():
    kept = np.concatenate([mask(0.5, key, T=64).reshape(8, -1) for key in (12345, 12346, -1)])
    count = kept.shape[1]
    flat = [truth.kept(0.5, key, 0, 0, np.arange(count)) for key in (12345, 12346, -1, 1 << 31)]
    words = np.concatenate([kept, flat])
    agreement = (words[:, None] == words[None, :]).mean(2)[~np.eye(len(words), dtype=bool)]
    assert abs(agreement - 0.5).max() < 5 * 0.5 / np.sqrt(count)
    full = truth.kept(0.5, 12345, np.arange(8)[:, None, None], np.arange(270)[:, None], np.arange(270))
    for lag in (1, 16, 64, 192):
        row = full[:, -1, :-lag]
        for other in (full[:, -1, lag:], full[:, -1 - lag, :-lag]):  # keys, queries further up
            assert near((row == other).mean(), 0.5, row.size), lag
    for lag in (1, 2, 3, 16, 256, 768, 3072, 65536):
        long = truth.kept(0.5, 9, 0, 0, np.arange(300_000))
        assert near((long[lag:] == long[:-lag]).mean(), 0.5, long.size - lag), lag


@pytest.mark.parametrize("op", DROPPING, ids=lambda op: op.name)
def test_without_dropout_the_key_changes_no_bit(op):
    def results(key):
        case, native = dropped_case(op, p_drop=0.0), NATIVES[-1]
        views = {n: p and p.view for n, p in harness.place(case, native, 2).items()}
        views["key_drop"][0] = key
        native.bind(KERNELS[case.kernel], views, case.dims | {"NT": 2})()
        return {"out": views["out"]}

    harness.assert_same_bits("key with p_drop = 0", results(1), results(-2))


# --- numbers that are no numbers


def poisoned():
    for name, kernel in KERNELS.items():
        for arg in kernel.args:
            floats = arg.dtype == "f32" and arg.role in ("read", "weight", "gradient", "saved", "written")
            if floats and arg.name in harness.read_by(kernel):
                yield Case(name, harness.modest(OP_OF[name]), poison=arg.name)


@pytest.mark.parametrize("case", list(poisoned()), ids=str)
def test_a_nan_reaches_the_output(case):
    """Wherever the reference has none there is none; where it has some there is at least one (0 * NaN may vanish)."""
    for native in NATIVES:
        written = harness.execute(case, native, 2)
        for name, want in harness.expected(case).items():
            got, may = np.isnan(written[name]), np.isnan(want.value)
            assert not (got & ~may).any() and got.any() == may.any(), f"{case} on {native.isa}: {name}"


@BY_ISA
@pytest.mark.parametrize("poison", ["inp", "lse", "dlosses"])
def test_an_ignored_target_hides_a_nan(native, poison):
    """Its row of dlogits is 0, so that only a product with the NaN itself can show it."""
    case = Case("classifier_backward", tuple((CLASSIFIER | {"R": 47, "BF16": 0}).items()))
    given = harness.inputs(case)
    given["targets"][3] = -1
    given[poison][3] = np.nan
    written = dict(dinp=np.empty_like(given["inp"]), dweight=np.empty_like(given["weight"]))
    work = dict(logits=np.empty((47, CLASSIFIER["Vp"]), np.float32), V=CLASSIFIER["V"])
    kernels.run("classifier_backward", kernels=native, **written, **given, **work)
    assert not written["dinp"][3].any() and not np.isnan(written["dinp"]).any()
    assert np.isnan(written["dweight"]).any() == (poison == "inp")


@BY_ISA
def test_bf16_rounds_to_nearest_and_ties_to_even(native):
    upper = np.arange(0x3F00, 0x4300, dtype=np.uint32)
    rounded = [(0x7FFF, 0 * upper), (0x8000, upper & 1), (0x8001, 0 * upper + 1)]  # lower half: what it adds above
    x, want = (np.concatenate(parts).view(np.float32).reshape(-1, 32) for parts in
               zip(*((upper << 16 | lower, upper + up << 16) for lower, up in rounded)))  # fmt: skip
    unit = np.eye(32, dtype=np.float32)
    left, right = np.empty_like(x), np.empty((32, len(x)), np.float32)
    kernels.run("linear_forward", out=left, inp=x, weight=unit, BF16=1, kernels=native)
    kernels.run("linear_forward", out=right, inp=unit, weight=x, BF16=1, kernels=native)
    assert np.array_equal(left, want) and np.array_equal(right.T, want)


@BY_ISA
def test_exp_of_minus_infinity_is_zero(native):
    inp, weight = np.ones((1, 1), np.float32), np.float32([[0], [-np.inf], [0]])
    losses, lse = np.empty(1, np.float32), np.empty(1, np.float32)
    work = dict(logits=np.empty((1, 3), np.float32), held=np.zeros(1, np.int32))
    given = dict(inp=inp, targets=np.zeros(1, np.int32), weight=weight, V=3)
    kernels.run("classifier_forward", losses=losses, lse=lse, kernels=native, **given, **work)
    assert losses[0] == lse[0] == np.float32(np.log(2))


def exp_of(native, x: np.ndarray) -> np.ndarray:
    """The kernels' exp: the head with weights (1, 0), lse 0 and the second target has dinp = exp(inp)."""
    inp = x[:, None].astype(np.float32)
    rows, dinp, dweight = len(inp), np.empty_like(inp), np.empty((2, 1), np.float32)
    given = dict(
        inp=inp, lse=np.zeros(rows, np.float32), dlosses=np.ones(rows, np.float32), weight=np.float32([[1], [0]])
    )
    work = dict(
        targets=np.ones(rows, np.int32), logits=np.empty((rows, 2), np.float32), held=np.zeros(1, np.int32), V=2
    )
    kernels.run("classifier_backward", dinp=dinp, dweight=dweight, kernels=native, **given, **work)
    return dinp[:, 0]


@BY_ISA
def test_exp_is_within_three_units_in_the_last_place(native):
    x = np.linspace(-87, 88, 20001, dtype=np.float32)
    want = np.exp(x.astype(np.float64))
    assert (abs(exp_of(native, x) - want) <= 3 * np.spacing(want.astype(np.float32))).all()


@BY_ISA
def test_exp_ends_in_zero_and_in_infinity(native):
    assert (exp_of(native, np.float32([-88, -1e4, -3e38])) == 0).all()
    assert (exp_of(native, np.float32([89, 1e4, 3e38])) == np.inf).all()


@BY_ISA
def test_subnormals_survive_in_every_thread(native):
    """Sums of subnormals are exact unless a thread flushes them to zero; NumPy must not flush afterwards either."""
    tiny = (np.arange(1, 2001, dtype=np.float32) * np.float32(1e-45)).reshape(40, 50)
    out = np.full_like(tiny, np.nan)
    kernels.run("residual_forward", out=out, inp1=tiny, inp2=tiny, threads=3, kernels=native)
    assert (out.view(np.int32) == 2 * tiny.view(np.int32)).all() and (out > 0).all()
    assert np.float32(1e-40) * np.float32(0.5) > 0


def test_cases_do_not_share_numbers():
    """Arguments of one case are drawn apart, so that swapping two of them shows."""
    given = harness.inputs(Case("layernorm_forward", (("N", 1), ("C", 9))))
    assert not (given["weight"] == given["bias"]).any()
