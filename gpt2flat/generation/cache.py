"""Cache: the memory of generation and the calls bound to it: reading prompts into it, and one more token of every row.

It is a part of the model's arena, in front of scratch: kv (keys and values of every row), packed (weights in fewer bits), token (the
activations of a step) and prompt (those of reading). So training and generation can alternate."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property

import numpy as np

from ..arch import gpt2
from ..binding import Binder, Call, bind
from ..kernels.ops import MODES
from ..kernels.packing import BF16, FP32, INT8, packed_floats
from ..memory.arena import Section
from ..memory.layout import ALIGN, Layout, Place, Row
from .packed import pack_rows, unpack_rows

WEIGHTS = {"fp32": FP32, "bf16": BF16, "int8": INT8}
TOKENS = 1024  # that are read at once; a longer prompt alone
PROGRAMS = 8  # shapes of prompts that stay bound
PIECE = 1 << 16  # weights that are packed at once


class Cache:
    """Memory for `rows` sequences of up to `most` tokens each. A later Cache of the same model takes it over (`lost`)."""

    def __init__(self, model, rows: int, most: int, weights: str):
        """weights: a name of WEIGHTS. Raises CapacityError."""
        self.model, self.rows, self.most = model, rows, most
        modes = dict.fromkeys(MODES, 0) | {
            "BF16": int(model.precision == "bf16"),
            "PACK": WEIGHTS[weights],
            "NT": model.threads,
        }
        self._dims = {**model.config.dims(), **modes, "B": rows, "S": -(-most // 16) * 16}
        self._params = _with_head(model.params.layout, self._dims)
        self.layouts = {"kv": Layout.plan(gpt2.CACHE, self._dims, ALIGN), "packed": self._packed()}
        self._token = self._token_program(self._dims)
        # no kernel needs more scratch for less
        self._scratch = self._program(
            _unrolled((), gpt2.READ, (), 1), "prompt", gpt2.READ_ACTS, self._shape(TOKENS, most)
        )[1]
        self.layouts["token"] = _with_scratch(gpt2.TOKEN_ACTS, self._token[1], self._dims)
        self.layouts["prompt"] = self._prompt_layout(1, max(most, TOKENS))
        self._prompts: dict[tuple[int, int, int], tuple[list[Call], Section]] = {}
        self._steps: dict[int, tuple[list[Call], Section]] = {}

    def open(self) -> None:
        """Takes its memory from the arena and binds the calls of a token. Raises CapacityError."""
        floats = self.model.plan_generation({name: layout.floats for name, layout in self.layouts.items()})
        self._turn = self.model.arena.turn
        self.sections = {name: Section(name, floats[name], layout) for name, layout in self.layouts.items()}
        self.sections["params"] = Section("params", self.model.params.floats, self._params)
        self.use(self.rows)
        pieces = [pair for place in self.layouts["packed"] for pair in self._pairs(place)]
        with ThreadPoolExecutor(self.model.threads) as pool:  # NumPy lets go of the interpreter, and new memory takes its time
            for _ in pool.map(lambda pair: pack_rows(*pair, self._dims["PACK"]), pieces):
                pass

    @property
    def calls(self) -> list[Call]:
        """Those of generation alone: a token, and putting a prompt of every row into the cache."""
        return (
            self._token[0]
            + self._program([(gpt2.STORE, 0)], "prompt", gpt2.READ_ACTS, self._shape(self.rows, self.most))[0]
        )

    def matrices(self) -> list[np.ndarray]:
        """Views of the matrices that a step reads, packed or not."""
        refs = {str(ref): ref for call in self._step for arg, ref in call.refs.items() if arg == "weight"}
        return [self.sections[ref.section].slot(ref.name, ref.slot) for ref in refs.values()]

    def prompt_flops(self, tokens: int) -> int:
        """Flops of reading one prompt of so many ids, and of its logits."""
        return sum(call.flops for call in [*self._reading(1, tokens), *self._finish])

    @property
    def lost(self) -> bool:
        return self.model.arena.turn != self._turn

    # -- tables --------------------------------------------------------------------------------------------------------

    def _packed(self) -> Layout:
        """The matrices of a step, in the order of the parameters, by packed rows."""
        names = {step.names.get("weight") for step in (*gpt2.TOKEN, *gpt2.TOKEN_TAIL)}
        pack, rows = self._dims["PACK"], []
        for place in self._params if pack != FP32 else ():
            if place.row.name in names:
                width = packed_floats(place.slot_shape[1], pack)
                rows.append(replace(place.row, axes=f"{place.row.axes.split(',')[0]}, {width}"))
        return Layout.plan(rows, self._dims, ALIGN)

    def _shape(self, B: int, T: int) -> dict[str, int]:
        return {**self._dims, "B": B, "T": T, "N": B * T}

    def _prompt_layout(self, B: int, T: int) -> Layout:
        return _with_scratch(gpt2.READ_ACTS, self._scratch, self._shape(B, T))

    def _program(self, steps, section: str, rows, dims: dict[str, int]) -> tuple[list[Call], int]:
        """The calls of steps, and the scratch that they need."""
        kv = Layout.plan(gpt2.CACHE, dims, ALIGN)
        packed = (
            self.layouts["packed"] if section == "token" else Layout()
        )  # prompts are read with the parameters themselves
        layouts = {"packed": packed, "params": self._params, "kv": kv, section: Layout.plan(rows, dims, ALIGN)}
        calls = Binder(steps, layouts, dims).forward_calls()
        taking = [call for call in calls if any(arg.role == "scratch" for arg in call.kernel.args)]
        return calls, max((self.model.kernels.scratch(call.op, call.numbers) for call in taking), default=0)

    def _bind(self, calls: list[Call], sections: dict, acts: Section) -> list[Call]:
        bind(calls, {**sections, "scratch": acts}, self.model.kernels)
        return calls

    def _token_program(self, dims: dict[str, int]) -> tuple[list[Call], int]:
        steps = _unrolled(gpt2.TOKEN_HEAD, gpt2.TOKEN, gpt2.TOKEN_TAIL, self._dims["L"])
        return self._program(steps, "token", gpt2.TOKEN_ACTS, dims)

    # -- passes --------------------------------------------------------------------------------------------------------

    def read(self, first: int, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Reads prompts (B, T), padded at their ends, into rows first .. first + B: all but what the last block does behind its keys and
        values. Returns its q, k, v and the residual stream in front of it, (B, T, 3C) and (B, T, C)."""
        B, T = tokens.shape
        if (first, B, T) not in self._prompts:
            while len(self._prompts) >= PROGRAMS:
                self._prompts.pop(next(iter(self._prompts)))
            self._prompts[first, B, T] = self._bind_prompt(first, B, T)
        calls, acts, sections = self._prompts[first, B, T]
        acts["tokens"][:] = tokens.reshape(-1)
        acts["p_drop"][...] = acts["key_drop"][...] = 0
        self.model.run(calls, sections)
        return acts["qkv"].reshape(B, T, -1), acts["stream"].reshape(B, T, -1)

    def _reading(self, B: int, T: int) -> list[Call]:
        last = self._dims["L"] - 1
        steps = _unrolled(gpt2.HEAD, gpt2.READ, (), last) + [(step, last) for step in gpt2.READ_LAST]
        return self._program(steps, "prompt", gpt2.READ_ACTS, self._shape(B, T))[0]

    def _bind_prompt(self, first: int, B: int, T: int) -> tuple[list[Call], Section, dict]:
        calls = self._reading(B, T)
        layout = self._prompt_layout(B, T)
        acts = Section("prompt", self.sections["prompt"].floats[: layout.floats], layout)
        sections = {**self.sections, "prompt": acts, "kv": _Rows(self.sections["kv"], first, first + B)}
        return self._bind(calls, sections, acts), acts, sections

    def use(self, rows: int) -> None:
        """From here on the first `rows` rows only are stepped; `token` is of so many."""
        if rows not in self._steps:
            self._steps[rows] = self._bind_token(rows)
        self._step, self.token, self._stepped = self._steps[rows]
        self._finish = self._step[-len((*gpt2.TOKEN[1:], *gpt2.TOKEN_TAIL)) :]  # from the attention of the last block on

    def _bind_token(self, rows: int) -> tuple[list[Call], Section, dict]:
        dims = {**self._dims, "B": rows}
        calls, scratch = self._token_program(dims)
        layout = _with_scratch(gpt2.TOKEN_ACTS, scratch, dims)
        acts = Section("token", self.sections["token"].floats[: layout.floats], layout)
        sections = {**self.sections, "token": acts, "kv": _Rows(self.sections["kv"], 0, rows)}
        return self._bind(calls, sections, acts), acts, sections

    def step(self, tokens: np.ndarray, positions: np.ndarray) -> None:
        """One token of each row in use, at these positions."""
        self.token["tokens"][:], self.token["positions"][:] = tokens, positions
        self.model.run(self._step, self._stepped)

    def finish(self, qkv: np.ndarray, stream: np.ndarray, positions: np.ndarray) -> None:
        """The logits of each row in use from what `read` returned at its last position: what the last block does there, and the head."""
        self.token["qkv"][:], self.token["stream"][:], self.token["positions"][:] = qkv, stream, positions
        self.model.run(self._finish, self._stepped)

    def select(self, sources: np.ndarray, length: int) -> None:
        """Row r gets a copy of the first `length` positions of row sources[r]."""
        moved = np.flatnonzero(sources != np.arange(len(sources)))
        blocks = -(-length // 16) * 16
        for name in ("keys", "values"):
            for layer in range(self._dims["L"]):
                view = self.sections["kv"].slot(name, layer)[:, :, :blocks]
                view[moved] = view[sources[moved]]

    # -- packed weights ------------------------------------------------------------------------------------------------

    def _pairs(self, place: Place):
        """Pieces of a packed tensor and of the parameters that it stands for, as rows."""
        wide, packed = (
            self._params[place.row.name],
            self.sections["packed"][place.row.name].reshape(-1, place.slot_shape[1]),
        )
        rows = self.sections["params"][place.row.name].reshape(-1, wide.slot_shape[1])
        count = max(1, PIECE // wide.slot_shape[1])
        for start in range(0, len(rows), count):
            yield packed[start : start + count], rows[start : start + count]

    @cached_property
    def error(self) -> dict[str, float]:
        """How far the packed matrices are from the parameters: the root mean square of the difference over that of the parameters,
        by tensor, and of "all". Empty where nothing is packed."""
        squares = {}
        for place in self.layouts["packed"]:
            off = size = 0.0
            for packed, rows in self._pairs(place):
                off += float(
                    np.square(unpack_rows(packed, rows.shape[1], self._dims["PACK"]) - rows, dtype=np.float64).sum()
                )
                size += float(np.square(rows, dtype=np.float64).sum())
            squares[place.row.name] = off, size
        if squares:
            squares["all"] = tuple(map(sum, zip(*squares.values())))
        return {name: (off / size) ** 0.5 if size else 0.0 for name, (off, size) in squares.items()}


class _Rows:
    """Some rows of the cache as a section."""

    def __init__(self, kv: Section, begin: int, end: int):
        self._kv, self._rows = kv, slice(begin, end)

    def slot(self, name: str, index: int) -> np.ndarray:
        return self._kv.slot(name, index)[self._rows]


def _unrolled(head, block, tail, layers: int) -> list:
    """Steps with their layers."""
    blocks = [(step, layer) for layer in range(layers) for step in block]
    return [(step, None) for step in head] + blocks + [(step, None) for step in tail]


def _with_head(params: Layout, dims: dict[str, int]) -> Layout:
    """The parameters, and as another tensor the rows of wte that are ids."""
    return Layout(
        params.places | {"head": Place(gpt2.HEAD_ROW, params["wte"].offset, 0, (dims["V"], dims["C"]))}, params.floats
    )


def _with_scratch(rows, scratch: int, dims: dict[str, int]) -> Layout:
    return Layout.plan((*rows, Row("scratch", str(scratch))), dims, ALIGN)
