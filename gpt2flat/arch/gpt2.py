"""GPT-2 as data: its config and dims, the tensor table (PARAMS in llm.c's file order, ACTS) and the program (HEAD, PLAIN or FUSED, TAIL).

Nothing here runs. A row or step changed here changes sizes, checkpoints, listings, pictures and training alike."""

import re
from dataclasses import dataclass, replace

from ..errors import UsageError
from ..kernels.ops import MODES
from ..memory.layout import Layout, Row
from ..program import Step

CAPS = dict(
    block_size=65536, vocab_size=1 << 20, n_layer=1024, n_head=1024, n_embd=65536
)  # as the readers of files (formats)
CHUNK_ROWS = 1024  # logits exist for this many rows at once: 206 MB for GPT-2's vocabulary


@dataclass(frozen=True)
class GPT2Config:
    """The shape of a GPT-2. padded_vocab_size 0 = vocab_size rounded up to 128, as llm.c pads. Raises UsageError for a shape
    that cannot be."""

    block_size: int = 1024
    vocab_size: int = 50257
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    padded_vocab_size: int = 0

    def __post_init__(self):
        for name, cap in CAPS.items():
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= cap:
                raise UsageError(f"{name} = {value!r}: expected a whole number from 1 to {cap}")
        if self.n_embd % self.n_head:
            raise UsageError(f"n_head = {self.n_head} does not divide n_embd = {self.n_embd}")
        if not self.padded_vocab_size:
            object.__setattr__(self, "padded_vocab_size", -(-self.vocab_size // 128) * 128)
        if (
            type(self.padded_vocab_size) is not int
            or not self.vocab_size <= self.padded_vocab_size <= CAPS["vocab_size"]
        ):
            raise UsageError(
                f"padded_vocab_size = {self.padded_vocab_size}: expected {self.vocab_size} to {CAPS['vocab_size']}"
            )

    @property
    def head_size(self) -> int:
        return self.n_embd // self.n_head

    def dims(self) -> dict[str, int]:
        """The dims of the tables that do not depend on the batch."""
        return dict(
            L=self.n_layer, C=self.n_embd, NH=self.n_head, KVH=self.n_head, HS=self.head_size, F=4 * self.n_embd,
            V=self.vocab_size, Vp=self.padded_vocab_size, maxT=self.block_size,
        )  # fmt: skip

    @classmethod
    def of_dims(cls, d: dict[str, int]) -> "GPT2Config":
        """The config of a checkpoint header's dims (maxT, V, L, NH, C, Vp)."""
        return cls(d["maxT"], d["V"], d["L"], d["NH"], d["C"], d["Vp"])

    @property
    def num_parameters(self) -> int:
        """All floats of a checkpoint, the padding of the vocabulary included."""
        return Layout.plan(PARAMS, self.dims()).floats

    @property
    def num_parameters_unpadded(self) -> int:
        return self.num_parameters - (self.padded_vocab_size - self.vocab_size) * self.n_embd


def batch_dims(B: int, T: int) -> dict[str, int]:
    return dict(B=B, T=T, N=B * T, R=min(B * T, CHUNK_ROWS))


# fmt: off
PARAMS = (
    Row("wte",      "Vp, C",            decay=True, init="normal", src="transformer.wte.weight"),
    Row("wpe",      "maxT, C",          decay=True, init="normal", src="transformer.wpe.weight"),
    Row("ln1w",     "C",      slots="L", init="ones",              src="transformer.h.{l}.ln_1.weight"),
    Row("ln1b",     "C",      slots="L",                           src="transformer.h.{l}.ln_1.bias"),
    Row("qkvw",     "3*C, C", slots="L", decay=True, init="normal", src="transformer.h.{l}.attn.c_attn.weight^T"),
    Row("qkvb",     "3*C",    slots="L",                           src="transformer.h.{l}.attn.c_attn.bias"),
    Row("attprojw", "C, C",   slots="L", decay=True, init="scaled", src="transformer.h.{l}.attn.c_proj.weight^T"),
    Row("attprojb", "C",      slots="L",                           src="transformer.h.{l}.attn.c_proj.bias"),
    Row("ln2w",     "C",      slots="L", init="ones",              src="transformer.h.{l}.ln_2.weight"),
    Row("ln2b",     "C",      slots="L",                           src="transformer.h.{l}.ln_2.bias"),
    Row("fcw",      "F, C",   slots="L", decay=True, init="normal", src="transformer.h.{l}.mlp.c_fc.weight^T"),
    Row("fcb",      "F",      slots="L",                           src="transformer.h.{l}.mlp.c_fc.bias"),
    Row("fcprojw",  "C, F",   slots="L", decay=True, init="scaled", src="transformer.h.{l}.mlp.c_proj.weight^T"),
    Row("fcprojb",  "C",      slots="L",                           src="transformer.h.{l}.mlp.c_proj.bias"),
    Row("lnfw",     "C",      init="ones",                         src="transformer.ln_f.weight"),
    Row("lnfb",     "C",                                           src="transformer.ln_f.bias"),
)
INIT_STD = 0.02  # of "normal"; by 1/sqrt(2L) less for "scaled", the matrices that write to the residual stream

ACTS = (
    Row("tokens",     "N", dtype="i32"),
    Row("targets",    "N", dtype="i32"),
    Row("p_drop",     "1"),
    Row("key_drop",   "1",      slots="L", dtype="i32"),    # of attention; the others with dropout only
    Row("key_drop_emb",     "1",             dtype="i32"),
    Row("key_drop_attproj", "1", slots="L",  dtype="i32"),
    Row("key_drop_fcproj",  "1", slots="L",  dtype="i32"),
    Row("emb_full",   "N, C"),                              # what dropout reads: its gradient is not the stream's
    Row("stream",     "N, C",   slots="L+1"),               # the residual stream: block l reads slot l and writes slot l+1
    Row("ln1",        "N, C",   slots="L", recompute=2),
    Row("ln1_mean",   "N",      slots="L", recompute=3),
    Row("ln1_rstd",   "N",      slots="L", recompute=3),
    Row("qkv",        "N, (NH+2*KVH)*HS", slots="L", recompute=3),
    Row("att_lse",    "B, NH, T",         slots="L", recompute=3),
    Row("att_scores", "B, NH, T, T",      slots="L", recompute=3),  # --attention standard only
    Row("att",        "B, NH, T, T",      slots="L", recompute=3),
    Row("atty",       "N, NH*HS",         slots="L", recompute=3),
    Row("attproj_full", "N, C", slots="1"),
    Row("attproj",    "N, C",   slots="1", grad="stream"),
    Row("mid",        "N, C",   slots="L", grad="stream", recompute=3),
    Row("ln2",        "N, C",   slots="L", recompute=2),
    Row("ln2_mean",   "N",      slots="L", recompute=3),
    Row("ln2_rstd",   "N",      slots="L", recompute=3),
    Row("fch",        "N, F",   slots="L", recompute=3),
    Row("fch_gelu",   "N, F",   slots="L", recompute=1),
    Row("fcproj_full", "N, C",  slots="1"),
    Row("fcproj",     "N, C",   slots="1", grad="stream"),
    Row("lnf",        "N, C"),
    Row("lnf_mean",   "N"),
    Row("lnf_rstd",   "N"),
    Row("losses",     "N"),
    Row("lse",        "N"),
    Row("logits",     "R, Vp"),                              # of one chunk of rows; dlogits in backward
    Row("held",       "1", dtype="i32"),
)
RECOMPUTE = max(row.recompute for row in ACTS)  # the highest level

HEAD = (
    Step("embedding", out="stream[0]", tokens="tokens", wte="wte", wpe="wpe"),
)
ATTENTION = {
    "flash":    Step("attention", out="atty", lse="att_lse", inp="qkv", p_drop="p_drop", key_drop="key_drop"),
    "standard": Step("attention_standard", out="atty", scores="att_scores", att="att", inp="qkv", p_drop="p_drop",
                     key_drop="key_drop"),
}
PLAIN = (
    Step("layernorm", out="ln1", mean="ln1_mean", rstd="ln1_rstd", inp="stream[l]", weight="ln1w", bias="ln1b"),
    Step("linear",    out="qkv", inp="ln1", weight="qkvw", bias="qkvb"),
    ATTENTION["flash"],
    Step("linear",    out="attproj", inp="atty", weight="attprojw", bias="attprojb"),
    Step("residual",  out="mid", inp1="stream[l]", inp2="attproj"),
    Step("layernorm", out="ln2", mean="ln2_mean", rstd="ln2_rstd", inp="mid", weight="ln2w", bias="ln2b"),
    Step("linear",    out="fch", inp="ln2", weight="fcw", bias="fcb"),
    Step("gelu",      out="fch_gelu", inp="fch"),
    Step("linear",    out="fcproj", inp="fch_gelu", weight="fcprojw", bias="fcprojb"),
    Step("residual",  out="stream[l+1]", inp1="mid", inp2="fcproj"),
)
FUSED = (  # the same bits without attproj, fch_gelu and fcproj
    *PLAIN[:3],
    Step("linear_residual", out="mid", inp="atty", added="stream[l]", weight="attprojw", bias="attprojb"),
    *PLAIN[5:7],
    Step("gelu_linear", out="stream[l+1]", inp="fch", added="mid", weight="fcprojw", bias="fcprojb"),
)
TAIL = (
    Step("layernorm", out="lnf", mean="lnf_mean", rstd="lnf_rstd", inp="stream[L]", weight="lnfw", bias="lnfb"),
    Step("classifier", losses="losses", lse="lse", inp="lnf", targets="targets", weight="wte", logits="logits", held="held"),
)
# fmt: on
# Generation, B rows at once. CACHE: keys and values of S positions. READ_ACTS, READ: a prompt, on its way into the cache, in one
# slot for all layers. TOKEN_ACTS, TOKEN: one more token of each row; "head" is the part of wte that has a meaning.
# fmt: off
CACHE = (
    Row("keys",      "B, KVH, S, HS", slots="L"),
    Row("values",    "B, KVH, S, HS", slots="L"),
)
TOKEN_ACTS = (
    Row("tokens",    "B", dtype="i32"),
    Row("positions", "B", dtype="i32"),
    Row("stream",    "B, C"),
    Row("qkv",       "B, (NH+2*KVH)*HS"),
    Row("atty",      "B, NH*HS"),
    Row("mid",       "B, C"),
    Row("fch",       "B, F"),
    Row("logits",    "B, V"),
)
HEAD_ROW = Row("head", "V, C")
TOKEN_HEAD = (
    Step("decode_embedding",   out="stream", tokens="tokens", positions="positions", wte="wte", wpe="wpe"),
)
TOKEN = (
    Step("decode_linear",      out="qkv", inp="stream", gain="ln1w", shift="ln1b", weight="qkvw", bias="qkvb"),
    Step("decode_attention",   out="atty", keys="keys", values="values", inp="qkv", positions="positions"),
    Step("decode_linear",      out="mid", inp="atty", added="stream", weight="attprojw", bias="attprojb"),
    Step("decode_linear_gelu", out="fch", inp="mid", gain="ln2w", shift="ln2b", weight="fcw", bias="fcb"),
    Step("decode_linear",      out="stream", inp="fch", added="mid", weight="fcprojw", bias="fcprojb"),
)
TOKEN_TAIL = (
    Step("decode_linear",      out="logits", inp="stream", gain="lnfw", shift="lnfb", weight="head"),
)
STORE = Step("decode_cache", keys="keys", values="values", inp="qkv")
READ_LAST = (*FUSED[:2], STORE)  # of the last block; behind it only the last position counts, and goes on as a token does
READ = (*READ_LAST, *FUSED[2:])
READ_ACTS = tuple(replace(row, slots="") for row in ACTS if row.name in
                  {name.partition("[")[0] for step in (*HEAD, *READ) for name in step.names.values()})
# fmt: on
# what begins the residual stream or is added to it -> the part of the model that dropout gets it from
DROPPED = {"stream[0]": "emb", "attproj": "attproj", "mid": "attproj", "fcproj": "fcproj", "stream[l+1]": "fcproj"}


def steps(attention: str = "flash", fused: bool = True, dropout: bool = False) -> tuple[tuple[Step, ...], ...]:
    """(HEAD, FUSED or PLAIN, TAIL) with the chosen attention, and with dropout where GPT-2 has it: on the embeddings and on
    what a block adds to the stream (attention has its own). Raises UsageError for an unknown name."""
    name = attention.partition(":")[0] if tile_sizes(attention)["QB"] else attention
    block = tuple(ATTENTION[name] if step is ATTENTION["flash"] else step for step in (FUSED if fused else PLAIN))
    if not dropout:
        return HEAD, block, TAIL
    return tuple(tuple(part for step in some for part in _with_dropout(step)) for some in (HEAD, block, TAIL))


def _with_dropout(step: Step) -> tuple[Step, ...]:
    """The step, and dropout of what it wrote; where it also added that to the stream, dropout does so in its place."""
    name = DROPPED.get(step.names.get("out"))
    if name is None or step.op == "residual":
        return (step,)
    names, out = dict(step.names), step.names["out"]
    added = {"added": names.pop("added")} if "added" in names else {}
    full = Step(step.op.removesuffix("_residual"), **{**names, "out": f"{name}_full"})
    return full, Step("dropout", out=out, inp=f"{name}_full", p_drop="p_drop", key_drop=f"key_drop_{name}", **added)


def tile_sizes(attention: str) -> dict[str, int]:
    """{"QB": 64, "KB": 192} of "flash:64x192", queries x keys of a tile; 0 leaves them to the kernel. No bit depends on them.
    Raises UsageError."""
    if not isinstance(attention, str) or not (attention in ATTENTION or attention.startswith("flash:")):
        raise UsageError(f"attention {attention!r}: choose from {', '.join(ATTENTION)}, flash:QxK")
    found = re.fullmatch(r"flash:(\d{1,4})x(\d{1,4})", attention, re.ASCII)
    sizes = {name: int(found[i]) if found else 0 for i, name in enumerate(("QB", "KB"), 1)}
    if ":" in attention and not all(sizes[name] and sizes[name] in MODES[name] for name in sizes):
        most = "x".join(str(MODES[name][-1]) for name in sizes)
        raise UsageError(
            f"attention {attention!r}: the queries and keys of a tile are multiples of 16, at most flash:{most}"
        )
    return sizes


# name: n_layer, n_head, n_embd (llm.c's descriptors d6 .. and gpt2:d6 ..)
_GPT2 = {
    6: (6, 384),
    12: (12, 768),
    24: (16, 1024),
    36: (20, 1280),
    48: (25, 1600),
    60: (30, 1920),
    72: (30, 2880),
    84: (36, 3456),
}
_OPENAI = {"gpt2": 12, "gpt2-medium": 24, "gpt2-large": 36, "gpt2-xl": 48}  # as Hugging Face calls OpenAI's four
# channels: layers, head size (llm.c's gpt3:c384 ..)
_GPT3 = {
    384: (6, 64),
    768: (12, 64),
    1024: (24, 64),
    1536: (24, 96),
    2048: (24, 128),
    2560: (32, 80),
    4096: (32, 128),
    12288: (96, 128),
}
PRESETS = {
    "tiny": GPT2Config(block_size=64, vocab_size=257, n_layer=4, n_head=4, n_embd=128),  # nanoGPT's CPU tutorial
    "mini": GPT2Config(block_size=128, vocab_size=257, n_layer=4, n_head=4, n_embd=256),
    "small": GPT2Config(
        block_size=256, vocab_size=257, n_layer=6, n_head=6, n_embd=384
    ),  # nanoGPT's Shakespeare, by letters
    **{f"d{d}": GPT2Config(1024, 50257, d, nh, c) for d, (nh, c) in _GPT2.items()},
    **{name: GPT2Config(1024, 50257, d, *_GPT2[d]) for name, d in _OPENAI.items()},
    **{f"gpt3:c{c}": GPT2Config(2048, 50257, layers, c // hs, c) for c, (layers, hs) in _GPT3.items()},
}


def config_of(name: str) -> GPT2Config:
    """The shape of a preset or of llm.c's descriptors: "tiny", "gpt2", "d12", "gpt2:d24", "gpt3:c768". Raises UsageError."""
    key = name.removeprefix("gpt2:")
    if key not in PRESETS:
        raise UsageError(f"no preset or descriptor {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[key]
