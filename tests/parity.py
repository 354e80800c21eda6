"""What both sides of a parity test share, without torch and gpt2flat: weights, batches, the bounds, our side's run.

Numbers are a dict: logits, grads/<tensor> and params<n>/<tensor> (after n updates), losses, grad_norms."""

import numpy as np

# (of a tensor, of a row), relative to its norm; ten updates of 1e-3 move a parameter by far more
BOUNDS = {"logits": (1e-5, 1e-5), "grads": (1e-5, 1e-4), "params": (1e-6, 1e-5)}
SMALL_ROW = 1e-4  # rows below this share of their tensor's norm count in the tensor's bound only (not for logits)
SERIES = {"losses": lambda truth: 5e-5, "grad_norms": lambda truth: 1e-4 * truth}  # absolute, per update
FACTOR = 2.0  # of PyTorch's own distance from float64
CHAIN = 1e-6  # 16 roundings: what one chain over 1393 rows loses where PyTorch adds up blocks; measured 8e-7
NOTHING, ADAM_REACH = 1e-3, 2e-2  # a share of a tensor's usual gradient; 2 lr a step, 10 steps

# what other programs save: (V maxT L NH C), which program, the dtype it saves, options of the config and of saving
SAVED = {
    "whole": ((97, 24, 3, 4, 36), "model", "float32", {}),
    "shards": ((211, 16, 2, 3, 27), "model", "float32", {"save": {"max_shard_size": "20KB"}}),
    "half": ((97, 24, 6, 2, 10), "model", "float16", {"save": {"max_shard_size": "15KB"}}),
    "bfloat": ((61, 40, 2, 5, 65), "model", "bfloat16", {}),
    "base": ((53, 12, 2, 1, 8), "base", "float32", {}),  # without its head: names without their prefix
    "upcast": ((53, 12, 2, 2, 8), "model", "float32",
               {"config": {"reorder_and_upcast_attn": True, "attn_implementation": "eager"}}),
    "PyTorch's gelu": ((53, 12, 1, 2, 8), "model", "float32", {"config": {"activation_function": "gelu_pytorch_tanh"}}),
    "nano.pt": ((65, 32, 3, 4, 28), "nanogpt", "float32", {}),
    "bare.pt": ((65, 16, 2, 2, 18), "nanogpt bare", "float32", {"prefix": "_orig_mod."}),
    "half.pt": ((65, 16, 2, 2, 18), "nanogpt", "bfloat16", {}),
}  # fmt: skip
SAVED_STD = 0.2


def fill(params: dict[str, np.ndarray], vocab_size: int, std: float, seed: int = 1) -> None:
    """Overwrites llm.c's 16 tensors: normal with `std`, biases too; layernorm weights around 1; padding of wte 0."""
    stream = np.random.RandomState(seed)
    for name, tensor in params.items():
        tensor[...] = std * stream.standard_normal(tensor.shape)
        if name.startswith("ln") and name.endswith("w"):
            tensor += 1.0
    params["wte"][vocab_size:] = 0.0


def batch(B: int, T: int, V: int, ignored: float = 0.0, seed: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """tokens and targets, int32 of (B, T); a share `ignored` of the targets is -1."""
    stream = np.random.RandomState(seed)
    tokens = stream.randint(0, V, (B, T)).astype(np.int32)
    targets = stream.randint(0, V, (B, T)).astype(np.int32)
    targets[stream.random_sample((B, T)) < ignored] = -1
    return tokens, targets


def numbers_of(model, tokens, targets, settings: dict, updates: int = 10, keep: tuple[int, ...] = (1, 10)) -> dict:
    """Our side: logits and gradients before the first update, losses and norms of all, parameters of those to keep."""
    found, losses, norms = {"logits": model.logits(tokens)}, [], []
    for update in range(updates):
        losses.append(model.forward_backward(tokens, targets))
        if update == 0:
            found |= {f"grads/{name}": g.copy() for name, g in model.grads.items()}
        norms.append(model.update(**settings))
        if update + 1 in keep:
            found |= {f"params{update + 1}/{name}": p.copy() for name, p in model.params.items()}
    return found | {"losses": np.array(losses), "grad_norms": np.array(norms)}


def _settled(key: str, found: dict, truth: dict) -> np.ndarray:
    """found[key] without what Adam makes of rounding: where the first gradient is next to nothing (all key biases,
    which softmax does not see, and a stray element elsewhere), g / |g| is a step of full size this way or that."""
    group, _, name = key.partition("/")
    if not group.startswith("params"):
        return found[key]
    gradient = truth[f"grads/{name}"]
    nothing = abs(gradient) < NOTHING * np.sqrt(np.mean(np.square(gradient)))
    nothing &= (gradient != 0) | (name == "qkvb")  # rows that no token reaches have exactly 0, and exactly no step
    chance = nothing & (abs(found[key] - truth[key]) < ADAM_REACH)
    return np.where(chance, truth[key], found[key])


def norms(rows: np.ndarray) -> np.ndarray:
    return np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))


def distances(key: str, found: dict, truth: dict) -> tuple[np.ndarray, np.ndarray]:
    """Per row (last axis): the norm of found - truth, and of truth."""
    assert found[key].shape == truth[key].shape, f"{key}: shape {found[key].shape}, expected {truth[key].shape}"
    ours, theirs = (x.reshape(-1, x.shape[-1]) for x in (_settled(key, found, truth), truth[key]))
    return norms(ours - theirs), norms(theirs)


def _total(x: np.ndarray) -> float:
    return float(np.sqrt(np.square(x).sum()))


def _worst(key: str, what: str, error, bound) -> list[str]:
    """A complaint when an error is not within its bound (NaN never is)."""
    error, bound = np.atleast_1d(error), np.atleast_1d(bound)
    bad = ~(error <= bound)
    if not bad.any():
        return []
    worst = int(np.argmax(np.where(bad, error / np.maximum(bound, 1e-300), -1.0)))
    found = f"{what} {worst} is off by {error[worst]:.3g}, allowed {bound[worst]:.3g}"
    return [f"{key}: {found}; {bad.sum()} of {len(bad)} are off"]


def beyond_bounds(found: dict, truth: dict, single: dict | None = None) -> list[str]:
    """Complaints about numbers further from `truth` than the bounds above; empty when all are met.

    With PyTorch's float32 numbers `single` beside a float64 `truth`, FACTOR times PyTorch's own distance is allowed too
    (in a row, its worst row's): the bound of problems so ill-conditioned that no float32 program meets the others."""
    bad = []
    for key in truth:
        if key in SERIES:
            slack = FACTOR * abs(single[key] - truth[key]).max() if single else 0.0
            bound = np.maximum(SERIES[key](truth[key]), np.full(len(truth[key]), slack))
            bad += _worst(key, "update", abs(found[key] - truth[key]), bound)
            continue
        error, size = distances(key, found, truth)
        theirs = distances(key, single, truth)[0] if single else np.zeros_like(error)
        tensor, row = BOUNDS[key.partition("/")[0].rstrip("0123456789")]
        whole = _total(size)
        counted = (size > 0) & ((size >= SMALL_ROW * whole) | (key == "logits"))
        row = max(row, FACTOR * np.max(theirs[counted] / size[counted], initial=0.0))
        uncounted = np.where(size > 0, whole, 0.0)  # a row of zeros has to be one here too
        bad += _worst(key, "tensor", _total(error), max(tensor * whole, FACTOR * _total(theirs)))
        bad += _worst(key, "row", error, np.where(counted, row * size, uncounted))
    return bad


def beyond_torch(found: dict, single: dict, truth: dict) -> list[str]:
    """Complaints where the logits or a gradient tensor are further from the float64 `truth` than FACTOR times PyTorch's
    float32 numbers `single`, but for what one long chain of additions may lose against PyTorch's sums of blocks."""
    bad = []
    for key in truth:
        if key == "logits" or key.startswith("grads/"):
            (error, size), (theirs, _) = distances(key, found, truth), distances(key, single, truth)
            bad += _worst(key, "tensor", _total(error), FACTOR * _total(theirs) + CHAIN * _total(size))
    return bad
