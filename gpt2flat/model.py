"""Model joins the floors below: a config, its tables, the arena, the program and the kernels.

The hot loop is `for call in calls: call()`. No NumPy arithmetic on the floats happens between the calls of a step."""

import itertools
import math
import os
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from . import update
from .arch import gpt2
from .arch.adamw import SCRATCH
from .binding import Call, bound_call
from .data import splitmix
from .data.tokens import as_ids
from .errors import FLOAT32_END, DataError, KernelArgError, NonFiniteError, UsageError, require_number
from .formats import checkpoint, hub
from .formats.floats import first_nonfinite
from .kernels import Team, backend, default_threads
from .kernels.ops import OPS
from .memory import axes as ax
from .memory.arena import HEADER_FLOATS, STATE, WORK, Arena
from .memory.layout import ALIGN, Layout
from .program import Program
from .weights import draw, fill, open_weights

MAX_ROWS = 1 << 20  # of a batch
PRECISIONS = ("fp32", "bf16")
MOST_DROPOUT = float(np.nextafter(np.float32(1), np.float32(0)))  # what it keeps is divided by 1 - dropout


class Model:
    """A GPT-2 in one flat float32 buffer.

    params, grads, m, v, acts, dacts map llm.c's tensor names to NumPy views of it: m.params["qkvw"] is (L, 3C, C). The first
    four are valid for life, acts and dacts until the next batch shape. Gradients of activations share homes (Row.grad): "mid"
    and "stream" name one array in dacts, and it holds one layer, the last one written. So does in acts a row with one slot, as
    those that `recompute` makes again: the last block's after forward, block 0's after backward."""

    def __init__(
        self,
        config: gpt2.GPT2Config,
        attention: str = "flash",
        threads: int | None = None,
        kernels=None,
        trace: bool = False,
        precision: str = "fp32",
        recompute: int = 0,
        fused: bool = True,
        dropout: float = 0.0,
        adapt: bool = True,
    ):
        """An empty model: all parameters 0. Use Model.load or Model.init, which take the same options.

        attention: "flash", "flash:64x192" with the queries x keys of its tiles, or "standard", which keeps its matrices. threads:
        at most so many, default the physical cores; beside other busy programs fewer work where that is faster (adapt; False: always
        all), see `team`. kernels: what gpt2flat.kernels.backend returned, default its choice. precision: "fp32", or
        "bf16", in which matrix products round their inputs to bf16 and add in float32; every buffer stays float32. recompute:
        what backward makes again instead of keeping it for every layer: 1 GELU, 2 also layernorms, 3 all but the residual
        stream. fused: GELU and residuals are computed within matrix products; False keeps what lies between ("attproj",
        "fch_gelu", "fcproj") to look at. Neither changes a bit of a result. dropout: the share, below 1, of attention
        probabilities, embeddings and block outputs that forward_backward drops. trace: check every call's results; the first NaN
        or inf raises NonFiniteError that names kernel, layer and tensor. Raises CapacityError, UsageError, UnsupportedCPUError."""
        if not isinstance(config, gpt2.GPT2Config):
            found = type(config).__name__
            raise UsageError(f"a model is made of a GPT2Config, not of {found}: Model.init takes names too")
        if not isinstance(precision, str) or precision not in PRECISIONS:
            raise UsageError(f"precision {precision!r}: choose from {', '.join(PRECISIONS)}")
        require_number("recompute", recompute, 0, gpt2.RECOMPUTE + 1, whole=True)
        require_number("dropout", dropout, 0, MOST_DROPOUT)
        self.config, self.attention, self.trace, self.precision = config, attention, trace, precision
        self.recompute, self.fused, self.dropout = int(recompute), bool(fused), float(dropout)
        self._steps = gpt2.steps(attention, self.fused, self.dropout > 0)
        self._passes = itertools.count()  # keys of dropout where the caller gives none
        self.threads = default_threads(threads).count
        self.kernels = kernels or backend()
        self._team = Team(self.kernels, self.threads, adapt)
        self._state = Layout.plan(gpt2.PARAMS, config.dims())
        self.arena = Arena(self._state.floats)
        self.params, self.grads, self.m, self.v = (
            self.arena.section(s, self._state) for s in ("params", "grads", "m", "v")
        )
        header = np.frombuffer(checkpoint.header(config.dims()), np.float32)
        self.arena.buffer[:HEADER_FLOATS] = header
        self.t = 0  # updates done
        self.batch = None  # (B, T) of the plan
        self._last = None  # what backward would differentiate: "forward" once losses exist

    @classmethod
    def load(cls, path, block_size: int | None = None, **options) -> "Model":
        """A model from an llm.c checkpoint, version 3, 1 (wte without padding) or 5 (bf16, which float32 holds exactly), or from a
        folder of Hugging Face's (config.json, model.safetensors or its shards), or nanoGPT's ckpt.pt; a smaller `block_size` keeps
        that many rows of wpe.

        Read straight into the head of the arena. Raises CheckpointError for what cannot be read, FormatError for what is none of these,
        NonFiniteError for NaN or inf in it, UsageError for a larger block size, CapacityError."""
        with open_weights(path) as file:
            config = gpt2.GPT2Config.of_dims(file.dims)
            block_size = config.block_size if block_size is None else block_size
            require_number("block size", block_size, 1, gpt2.CAPS["block_size"] + 1, whole=True)
            if block_size > config.block_size:
                raise UsageError(f"block size {block_size} is larger than the {config.block_size} of {path}")
            model = cls(replace(config, block_size=int(block_size)), **options)
            fill(model.params, file)
        model._require_finite(path, "the file is damaged")
        return model

    @classmethod
    def from_pretrained(cls, name, block_size: int | None = None, **options) -> "Model":
        """What Model.load reads, or by its name a model of the Hugging Face Hub ("gpt2", "owner/name"; the extra `hub`).

        Raises UsageError without the extra, DataError when it cannot be fetched, and what Model.load raises."""
        if isinstance(name, str) and not os.path.exists(name):
            name = hub.fetch(hub.repository(name) or hub.repository(f"{hub.MARK}{name}"))
        return cls.load(name, block_size, **options)

    @classmethod
    def init(cls, config: gpt2.GPT2Config | str, seed: int = 42, **options) -> "Model":
        """Random weights from a GPT2Config or a descriptor ("d12", "tiny"), with llm.c's and PyTorch's random stream: wte and wpe,
        then layer by layer the matrices; std 0.02, by 1/sqrt(2L) less for those that write to the residual stream."""
        model = cls(gpt2.config_of(config) if isinstance(config, str) else config, **options)
        draw(model.params, model.config, seed)
        return model

    def _require_finite(self, path, so: str) -> None:
        for name, view in self.params.items():
            index = first_nonfinite(view)
            if index is not None:
                raise NonFiniteError(f"{path}: {name} holds {view.reshape(-1)[index]} at flat index {index}; {so}")

    def __repr__(self) -> str:
        c, size = self.config, self.config.num_parameters
        shape = f"{c.n_layer} layers, {c.n_head} heads, {c.n_embd} channels, block size {c.block_size}, vocabulary {c.vocab_size}"
        return f"<Model: {shape}, {size:,} parameters, {self.precision}, {self.kernels.name} {self.kernels.isa}, threads {self.threads}>"

    @property
    def team(self) -> int:
        """Threads that work at the moment: `threads`, or fewer while other programs keep these busy. It changes no bit."""
        return self._team.size

    @property
    def buffer(self) -> np.ndarray:
        """Every float of the model: header, params, grads, m, v, and once a batch is planned scratch, dacts, acts."""
        return self.arena.buffer

    def save(self, path, dtype: str = "fp32") -> None:
        """Writes an llm.c checkpoint, version 3, or with dtype "bf16" version 5 (half the size; rounded to nearest even).

        Beside the target, synced, then renamed. Raises CheckpointError, NonFiniteError for NaN or inf in a parameter, UsageError
        for another dtype; the old file stays."""
        if not isinstance(dtype, str) or dtype not in checkpoint.WRITTEN:
            raise UsageError(f"dtype {dtype!r}: a checkpoint is written as one of {', '.join(checkpoint.WRITTEN)}")
        self._require_finite(path, "nothing was saved")
        checkpoint.write(path, self.config.dims(), self.params.floats, dtype)

    # -- planning ------------------------------------------------------------------------------------------------------

    def program(self, B: int, T: int) -> Program:
        """The unbound program for a batch of B rows of T tokens."""
        self._check_batch(B, T)
        modes = {"BF16": int(self.precision == "bf16"), **gpt2.tile_sizes(self.attention)}
        dims = {**self.config.dims(), **gpt2.batch_dims(B, T), **modes, "NT": self.threads}
        return Program(*self._steps, gpt2.PARAMS, gpt2.ACTS, dims, self.kernels, self.recompute)

    def _check_batch(self, B: int, T: int) -> None:
        longest, whole = self.config.block_size, type(B) is type(T) is int
        if not (whole and 1 <= B <= MAX_ROWS and 1 <= T <= longest):
            found = f"({B}, {T})" if whole and max(abs(B), abs(T)) < 1 << 63 else "of another kind"
            raise KernelArgError(f"batch {found}: expected 1 to {MAX_ROWS} rows of 1 to {longest} tokens (block size)")

    def plan(self, B: int, T: int, training: bool = False) -> Program:
        """Plans scratch, dacts and acts for (B, T); activation views of an older plan are void.

        training: also make sure that gradients and AdamW state will find room. Raises CapacityError."""
        self._check_batch(B, T)
        if self.batch != (B, T):
            self._plan(B, T, training)
        if training:
            self.arena.admit("grads", "m", "v", "dacts")
        return self._program

    def _plan(self, B: int, T: int, training: bool) -> None:
        program = self.program(B, T)
        layouts = self.layouts(program)
        once = [place for place in program.acts if place.row.recompute and place.slots > 1]  # with --recompute 3
        spare = sum(place.floats - place.floats // place.slots for place in once)
        self.arena.plan_work({name: layouts[name].floats for name in WORK}, spare, training)
        self.scratch = self.arena.section("scratch", layouts["scratch"])
        self.acts = self.arena.section("acts", program.acts)
        self.dacts = self.arena.section("dacts", program.dacts, program.homes)
        sections = {name: getattr(self, name) for name in ("params", "grads", "m", "v", "scratch", "acts", "dacts")}
        program.bind(sections, self.kernels)
        for name in ("p_drop", "held", *self._keys()):  # the only rows that are read before a step writes them
            self.acts[name][...] = 0
        self._program, self.batch, self._last = program, (B, T), None
        state = (self.params, self.grads, self.m, self.v, self.scratch)
        self._update = update.Update(*state, self.kernels, self.threads)

    def plan_generation(self, sizes: dict[str, int]) -> dict[str, np.ndarray]:
        """The memory of generation: floats by section in, views out. If that moves the activations of the last batch, they are planned
        again and views of them are void. Raises CapacityError."""
        if self.arena.plan_generation(sizes) and self.batch:
            batch, self.batch = self.batch, None
            self.plan(*batch)
        return {name: self.arena.floats(name) for name in sizes}

    def layouts(self, program: Program) -> dict[str, Layout]:
        """The layout of every section of the arena for a program, in order of memory."""
        norm = self.kernels.scratch(OPS["grad_norm"], {"P": self._state.floats, "NT": self.threads})
        scratch = Layout.plan(SCRATCH, {"S": max(program.scratch, norm)}, ALIGN)
        state = {name: self._state for name in STATE if name != "header"}
        return {**state, "scratch": scratch, "dacts": program.dacts, "acts": program.acts}

    # -- the passes ----------------------------------------------------------------------------------------------------

    def run(self, calls: list[Call], sections=None) -> None:
        """Runs bound calls on the model's threads. sections: by name, where the tensors of the calls lie, for `trace`; default the
        model's own."""
        with self._team:
            for call in self._team.each(calls):
                call()
                if self.trace:
                    self._check_finite(call, sections or vars(self))

    def _check_finite(self, call: Call, sections) -> None:
        for arg in call.written:
            ref = call.refs[arg.name]
            view = sections[ref.section].slot(ref.name, ref.slot)
            if not np.isfinite(view).all():
                first = "the first tensor of the step that is not"
                raise NonFiniteError(f"{call.where}: {arg.name} is not finite, {first}")

    def _put(self, tokens, targets=None, training: bool = False, dropout_key: int | None = None) -> Program:
        """Checks a batch, plans for its shape and copies it in; without a key nothing will be dropped. Raises KernelArgError,
        DataError, UsageError."""
        if dropout_key is not None:
            require_number("dropout_key", dropout_key, 0, splitmix.END, whole=True)
        tokens = as_ids("tokens", tokens, self.config.vocab_size)
        if targets is not None:
            targets = as_ids("targets", targets, self.config.vocab_size, least=-1)
            if targets.shape != tokens.shape:
                raise KernelArgError(f"targets are {targets.shape}, expected the shape of tokens {tokens.shape}")
        program = self.plan(*tokens.shape, training=training)
        if self.dropout:
            self._put_dropout(dropout_key)
        self.acts["tokens"][:] = tokens.reshape(-1)
        self._last = None
        if targets is not None:
            self.acts["targets"][:] = targets.reshape(-1)
            self._counted = int(np.count_nonzero(self.acts["targets"] >= 0))
            if not self._counted:
                raise DataError("every target is -1: there is nothing to learn from")
        return program

    def _keys(self) -> list[str]:
        return [name for name in self.acts if name.startswith("key_drop")]

    def _put_dropout(self, key: int | None) -> None:
        """No dropout without a key; with one, each place of it gets the next word of splitmix64, in the order of the table."""
        self.acts["p_drop"][0] = 0.0 if key is None else self.dropout
        if key is not None:
            places = [self.acts[name].reshape(-1) for name in self._keys()]
            words = splitmix.words(int(key), sum(map(len, places)))
            for place in places:
                place[:], words = words[: len(place)], words[len(place) :]

    def _mean_loss(self) -> float:
        return math.fsum(self.acts["losses"].tolist()) / self._counted

    def forward(self, tokens, targets=None, dropout_key: int | None = None) -> float | None:
        """The mean loss in nats over the targets that are not -1; with no targets only the activations, and None.

        tokens, targets: (B, T) integers below the vocabulary size. Drops nothing, as evaluation must, unless a dropout_key below
        2^64 is given: then what forward_backward with this key drops. Never touches gradients. Raises KernelArgError, DataError."""
        program = self._put(tokens, targets, dropout_key=dropout_key)
        self.run(program.body if targets is None else program.forward)
        if targets is None:
            return None
        self._last = "forward"
        return self._mean_loss()

    def backward(self, scale: float = 1.0, accumulate: bool = False) -> None:
        """All gradients of `scale` times the mean loss of the last forward; `accumulate` adds to the gradients that are there."""
        require_number("backward: scale", scale, -FLOAT32_END)
        if self._last != "forward":
            raise UsageError("backward needs a forward with targets right before it")
        self.plan(*self.batch, training=True)
        self._seed(scale)
        self.run(self._program.backward[bool(accumulate)])
        self._last = None

    def forward_backward(
        self, tokens, targets, scale: float = 1.0, accumulate: bool = False, dropout_key: int | None = None
    ) -> float:
        """forward and backward in one; the same bits, and each chunk of logits is made once. Returns the mean loss (unscaled).

        dropout_key: below 2^64, all that decides what is dropped; splitmix.key_of(seed, update, micro-batch) makes one that
        repeats in another process. By default each call of a model has the next one."""
        require_number("forward_backward: scale", scale, -FLOAT32_END)
        if targets is None:
            raise KernelArgError("targets: expected integers of shape (B, T), found None")
        key = next(self._passes) if dropout_key is None else dropout_key
        program = self._put(tokens, targets, training=True, dropout_key=key)
        self._seed(scale)
        self.run(program.body)
        self.run(program.train[bool(accumulate)])
        return self._mean_loss()

    def _seed(self, scale: float) -> None:
        # the kernel leaves out rows whose target is -1
        self.dacts["losses"][:] = np.float32(scale / self._counted)

    # -- the update ----------------------------------------------------------------------------------------------------

    def grad_norm(self) -> float:
        """The Euclidean norm of all gradients."""
        self._need_plan("grad_norm")
        self.run([self._update.norm])
        return float(self.scratch["norm"][0])

    def update(self, lr: float = 1e-4, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8, weight_decay: float = 0.0,
               grad_clip: float | None = None, decay_all: bool = False, norm: float | None = None) -> float:  # fmt: skip
        """One AdamW update; returns the gradient norm before clipping.

        Weight decay applies to matrices and embeddings, with decay_all to every tensor (as llm.c's C test). grad_clip: gradients
        are scaled down to this norm. norm: what grad_norm() has just returned, to save a pass. Raises NonFiniteError, with nothing
        changed, when a gradient is NaN or infinite."""
        hyper = (lr, beta1, beta2, eps, weight_decay, grad_clip)
        update.check(*hyper)
        norm = self.grad_norm() if norm is None else norm
        if problem := self.unfit_norm(norm, grad_clip):
            raise NonFiniteError(f"{problem}; nothing was updated")
        self._update.put(self.t + 1, norm, *hyper)
        self.run(self._update.adamw[decay_all])
        self.t, self._last = self.t + 1, None
        return norm

    def unfit_norm(self, norm: float, grad_clip: float | None = None) -> str | None:
        """Why gradients of this norm must not be used in an update, naming the tensor; None if they may."""
        return update.unfit_norm(norm, self.grads, grad_clip)

    def _need_plan(self, what: str) -> None:
        if self.batch is None:
            raise UsageError(f"{what} needs gradients: run forward_backward first")

    # -- looking -------------------------------------------------------------------------------------------------------

    def logits(self, tokens, last: bool = False, at: int | None = None) -> np.ndarray:
        """A copy of the logits, (B, T, V); with last=True those of the last position only, with at=t of position t, (B, V).

        tokens: (B, T) integers below V."""
        program = self._put(tokens)
        self.run(program.body)
        B, T = self.batch
        rows = self.acts["lnf"].reshape(B, T, -1)
        at = T - 1 if last else at
        if at is not None:
            require_number("logits: at", at, 0, T, whole=True)
        rows = rows.reshape(B * T, -1) if at is None else np.ascontiguousarray(rows[:, at])
        out = np.empty((len(rows), self.config.vocab_size), np.float32)
        chunk = self.acts["logits"]
        head = self.params["wte"]
        for start in range(0, len(rows), len(chunk)):
            part = rows[start : start + len(chunk)]
            numbers = {**program.dims, "N": len(part), "C": part.shape[1], "OC": len(head)}
            views = {"out": chunk[: len(part)], "inp": part, "weight": head, "scratch": self.scratch["scratch"]}
            self.run([bound_call(OPS["linear"], views, numbers, self.kernels)])
            out[start : start + len(part)] = chunk[: len(part), : self.config.vocab_size]
        return out.reshape(B, T, -1) if at is None else out

    def losses(self, tokens, targets, look: Callable[[np.ndarray], None] | None = None) -> np.ndarray:
        """The loss in nats of each target that is not -1, in order, (n,) float32: forward returns their mean. The head is for these
        positions only.

        tokens, targets: (B, T) integers below the vocabulary size. look: called with the logits of some of these positions after
        the other, (m, V), a view that lives until it returns. Raises KernelArgError, DataError."""
        if targets is None:
            raise KernelArgError("targets: expected integers of shape (B, T), found None")
        program = self._put(tokens, targets)
        self.run(program.body)
        acts, counted = self.acts, np.flatnonzero(self.acts["targets"] >= 0)
        found = np.empty(len(counted), np.float32)
        for start in range(0, len(counted), len(acts["logits"])):
            part = counted[start : start + len(acts["logits"])]
            m = len(part)
            views = {"losses": found[start : start + m], "lse": acts["lse"][:m], "inp": acts["lnf"][part], "targets": acts["targets"][part],
                     "weight": self.params["wte"], "logits": acts["logits"], "held": acts["held"], "scratch": self.scratch["scratch"]}  # fmt: skip
            self.run([bound_call(OPS["classifier"], views, {**program.dims, "N": m}, self.kernels)])
            if look:
                look(acts["logits"][:m, : self.config.vocab_size])
        acts["held"][0] = 0  # these logits are not those of lnf's first rows
        return found

    def flops_per_step(self, B: int, T: int) -> float:
        """Flops of one forward, backward and update, by the op table."""
        update = sum(ax.size(OPS[name].flops, {"P": self._state.floats}) for name in ("grad_norm", "adamw"))
        return self.program(B, T).flops() + update
