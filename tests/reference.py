"""PyTorch's word on GPT-2, written to .npz: the only file that imports torch, always run as a process of its own.

python tests/reference.py train CHECKPOINT BATCH.npz OUT.npz [--runs plain:float32 ...] [--updates 10] [--lr ...]
python tests/reference.py init OUT.npz --shape V maxT L NH C
python tests/reference.py bf16 BITS.npy OUT.npy     float32 bits to bfloat16 bits
python tests/reference.py slide CHECKPOINT IDS.npy OUT.npy --stride S [S ...]     perplexity by transformers' own recipe
python tests/reference.py saved FOLDER    models as transformers and nanoGPT save them, with what they compute
python tests/reference.py lines FILE    runs such commands, one per line, in one process
python tests/reference.py store     rewrites tests/parity_numbers/*.npz, which need no torch to be checked"""

import argparse
import json
import shlex
import tempfile
from pathlib import Path

import numpy as np
import parity
import torch
import torch.nn.functional as F
from torch import nn

STORED = Path(__file__).parent / "parity_numbers"
HEADER_INTS, MAGIC, VERSION = 256, 20240326, 3  # llm.c's fp32 checkpoint
# llm.c's tensors in file order, by their place in the module tree, which is Hugging Face's too; {} is the layer
PLACES = {
    "wte": "transformer.wte.weight",
    "wpe": "transformer.wpe.weight",
    "ln1w": "transformer.h.{}.ln_1.weight",
    "ln1b": "transformer.h.{}.ln_1.bias",
    "qkvw": "transformer.h.{}.attn.c_attn.weight",
    "qkvb": "transformer.h.{}.attn.c_attn.bias",
    "attprojw": "transformer.h.{}.attn.c_proj.weight",
    "attprojb": "transformer.h.{}.attn.c_proj.bias",
    "ln2w": "transformer.h.{}.ln_2.weight",
    "ln2b": "transformer.h.{}.ln_2.bias",
    "fcw": "transformer.h.{}.mlp.c_fc.weight",
    "fcb": "transformer.h.{}.mlp.c_fc.bias",
    "fcprojw": "transformer.h.{}.mlp.c_proj.weight",
    "fcprojb": "transformer.h.{}.mlp.c_proj.bias",
    "lnfw": "transformer.ln_f.weight",
    "lnfb": "transformer.ln_f.bias",
}
SMALL = {"V": 53, "maxT": 12, "L": 2, "NH": 3, "C": 21}  # the model of the stored numbers, of odd widths
SMALL_SETTINGS = {"B": 3, "T": 11, "std": 0.2, "ignored": 0.1, "lr": 1e-3, "weight_decay": 0.1, "updates": 10}


class Attention(nn.Module):
    def __init__(self, C, NH):
        super().__init__()
        self.NH, self.c_attn, self.c_proj = NH, nn.Linear(C, 3 * C), nn.Linear(C, C)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (t.view(B, T, self.NH, C // self.NH).transpose(1, 2) for t in self.c_attn(x).split(C, dim=2))
        return self.c_proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(B, T, C))


class MLP(nn.Module):
    def __init__(self, C):
        super().__init__()
        self.c_fc, self.c_proj = nn.Linear(C, 4 * C), nn.Linear(4 * C, C)

    def forward(self, x):
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, C, NH):
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(C, eps=1e-5), Attention(C, NH)
        self.ln_2, self.mlp = nn.LayerNorm(C, eps=1e-5), MLP(C)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Plain(nn.Module):
    """GPT-2 (Radford et al. 2019) as llm.c has it: pre-norm, tanh GELU, head tied to wte, no dropout."""

    def __init__(self, V, maxT, L, NH, C):
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(V, C),
                "wpe": nn.Embedding(maxT, C),
                "h": nn.ModuleList(Block(C, NH) for _ in range(L)),
                "ln_f": nn.LayerNorm(C, eps=1e-5),
            }
        )

    def forward(self, tokens):
        t = self.transformer
        x = t.wte(tokens) + t.wpe(torch.arange(tokens.shape[1]))
        for block in t.h:
            x = block(x)
        return F.linear(t.ln_f(x), t.wte.weight)


class HuggingFace(nn.Module):
    """The same through transformers' GPT2LMHeadModel, built from a config: nothing is downloaded."""

    def __init__(self, V, maxT, L, NH, C, **changes):
        super().__init__()
        from transformers import GPT2Config, GPT2LMHeadModel

        settings = dict(activation_function="gelu_new", layer_norm_epsilon=1e-5, use_cache=False) | changes
        config = GPT2Config(
            vocab_size=V, n_positions=maxT, n_layer=L, n_head=NH, n_embd=C, bos_token_id=0, eos_token_id=0,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **settings,
        )  # fmt: skip
        self.model = GPT2LMHeadModel(config)
        self.transformer = self.model.transformer

    def forward(self, tokens):
        return self.model(input_ids=tokens).logits


MODELS = {"plain": Plain, "huggingface": HuggingFace}


def read_header(path):
    """The shape in an llm.c v3 checkpoint, and its padded vocabulary."""
    header = np.fromfile(path, "<i4", HEADER_INTS)
    assert (header[0], header[1]) == (MAGIC, VERSION), f"{path}: not an llm.c v3 checkpoint"
    maxT, V, L, NH, C, Vp = (int(x) for x in header[2:8])
    return {"V": V, "maxT": maxT, "L": L, "NH": NH, "C": C}, Vp


def homes(model, L):
    """llm.c name -> the layers' parameters, each with whether it lies the other way round than llm.c's (out, in)."""
    found = {}
    for name, place in PLACES.items():
        places = [place.format(layer) for layer in range(L)] if "{}" in place else [place]
        flip = type(model.get_submodule(places[0].rpartition(".")[0])).__name__ == "Conv1D" and name.endswith("w")
        found[name] = [(model.get_parameter(p), flip) for p in places]
    return found


def stacked(model, L, Vp, grad=False):
    """The parameters (or their gradients) as llm.c stacks them, wte padded with zero rows; NumPy copies."""
    out = {}
    for name, layers in homes(model, L).items():
        tensors = [(p.grad if grad else p.detach(), flip) for p, flip in layers]
        arrays = [(t.T if flip else t).contiguous().numpy() for t, flip in tensors]
        out[name] = np.stack(arrays) if "{}" in PLACES[name] else arrays[0].copy()
    padding = np.zeros((Vp - out["wte"].shape[0], out["wte"].shape[1]), out["wte"].dtype)
    out["wte"] = np.concatenate([out["wte"], padding])
    return out


def build(kind, path, dtype):
    """A model of MODELS with the weights of an llm.c checkpoint; the file must end with the last tensor."""
    shape, Vp = read_header(path)
    model = MODELS[kind](**shape).to(dtype)
    with open(path, "rb") as file, torch.no_grad():
        file.seek(4 * HEADER_INTS)
        for name, layers in homes(model, shape["L"]).items():
            for parameter, flip in layers:
                rows, *rest = parameter.T.shape if flip else parameter.shape
                rows = Vp if name == "wte" else rows
                floats = np.fromfile(file, "<f4", rows * int(np.prod(rest))).reshape(rows, *rest)
                values = torch.from_numpy(floats[: shape["V"]] if name == "wte" else floats)
                parameter.copy_(values.T if flip else values)
        assert not file.read(1), f"{path}: bytes behind the last tensor"
    return model, shape, Vp


def loss_of(logits, targets):
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), ignore_index=-1)


def grad_norm(model):
    """Row norms, added up in float64: PyTorch's own float32 sum over 38 million squares is off by 5e-5."""
    rows = (torch.linalg.vector_norm(p.grad.reshape(-1, p.grad.shape[-1]), dim=1) for p in model.parameters())
    return sum(norms.double().square().sum().item() for norms in rows) ** 0.5


def train(kind, dtype, path, tokens, targets, args):
    """Logits and gradients before the first update, losses and norms of all, parameters of those to keep."""
    model, shape, Vp = build(kind, path, dtype)
    tokens, targets = torch.from_numpy(tokens).long(), torch.from_numpy(targets).long()
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": args.weight_decay},
        {"params": vectors, "weight_decay": args.weight_decay if args.decay_all else 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(args.beta1, args.beta2), eps=args.eps, fused=True)
    out, losses, norms = {}, [], []
    for update in range(args.updates):
        logits = model(tokens)
        loss = loss_of(logits, targets)
        optimizer.zero_grad()
        loss.backward()
        if update == 0:
            out["logits"] = logits.detach().numpy().copy()
            out |= {f"grads/{name}": a for name, a in stacked(model, shape["L"], Vp, grad=True).items()}
        del logits
        norms.append(grad_norm(model))
        if args.grad_clip:
            nn.utils.clip_grads_with_norm_(model.parameters(), args.grad_clip, torch.tensor(norms[-1]))
        optimizer.step()
        losses.append(loss.item())
        if update + 1 in args.keep:
            out |= {f"params{update + 1}/{name}": a for name, a in stacked(model, shape["L"], Vp).items()}
    return out | {"losses": np.array(losses), "grad_norms": np.array(norms)}


def init(shape, seed=42):
    """Parameters as llm.c's train_gpt2.py draws them: one generator, modules in the order of their tree."""
    model = Plain(**shape)
    generator = torch.Generator().manual_seed(seed)
    residual = 0.02 / (2 * shape["L"]) ** 0.5
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, residual if name.endswith("c_proj") else 0.02, generator=generator)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, 0.0, 0.02, generator=generator)
    return stacked(model, shape["L"], -(-shape["V"] // 128) * 128)


def write_checkpoint(path, shape, std):
    """An llm.c v3 checkpoint of parity.fill, without gpt2flat."""
    Vp = -(-shape["V"] // 128) * 128
    params = stacked(Plain(**shape), shape["L"], Vp)
    parity.fill(params, shape["V"], std)
    header = np.zeros(HEADER_INTS, "<i4")
    header[:8] = MAGIC, VERSION, shape["maxT"], shape["V"], shape["L"], shape["NH"], shape["C"], Vp
    path.write_bytes(header.tobytes() + b"".join(p.tobytes() for p in params.values()))


def slide(path, ids, stride):
    """The recipe of transformers' page on the perplexity of fixed-length models: windows of n_positions ids, `stride` apart; labels
    that an earlier window had are -100, which the model's own loss leaves out, and its shift leaves out the first of a window."""
    model, shape, _Vp = build("huggingface", path, torch.float64)
    sequence, nll_sum, count, prev_end = torch.from_numpy(ids).long()[None], 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + shape["maxT"], len(ids))
        input_ids = sequence[:, begin:end]
        labels = input_ids.clone()
        labels[:, : -(end - prev_end)] = -100
        with torch.no_grad():
            loss = model.model(input_ids, labels=labels).loss
        valid = int((labels[:, 1:] != -100).sum())
        nll_sum, count, prev_end = nll_sum + loss.item() * valid, count + valid, end
        if end == len(ids):
            break
    return np.exp(nll_sum / count), count


def store():
    """The small model's numbers in float64, rounded to float32, beside PyTorch's own float32 distance from them."""
    s = SMALL_SETTINGS
    args = parser().parse_args(["train", "-", "-", "-", "--lr", str(s["lr"]), "--weight-decay", str(s["weight_decay"])])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.bin"
        write_checkpoint(path, SMALL, s["std"])
        tokens, targets = parity.batch(s["B"], s["T"], SMALL["V"], ignored=s["ignored"])
        truth, ours = (train("plain", dtype, path, tokens, targets, args) for dtype in (torch.float64, torch.float32))
    out = {key: value if key in ("losses", "grad_norms") else value.astype(np.float32) for key, value in truth.items()}
    out |= {f"distance/{key}": np.linalg.norm(ours[key] - truth[key]) / np.linalg.norm(truth[key]) for key in truth}
    out |= {f"shape/{key}": value for key, value in SMALL.items()}
    out |= {f"settings/{key}": value for key, value in s.items()}
    STORED.mkdir(exist_ok=True)
    np.savez_compressed(STORED / "small.npz", **out)


class Bare(Plain):
    """The same without biases, as nanoGPT makes it from scratch."""

    def __init__(self, *shape):
        super().__init__(*shape)
        for name, _ in list(self.named_parameters()):
            if name.endswith(".bias"):
                module = self.get_submodule(name.rpartition(".")[0])
                module.register_parameter("bias", None)


def save_nanogpt(model, path, shape, bias, prefix):
    """As nanoGPT's train.py saves it: the state with its head, AdamW's, numbers of the run."""
    state = model.state_dict()
    state["lm_head.weight"] = state["transformer.wte.weight"]
    for name in list(state):
        state[prefix + name] = state.pop(name)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loss_of(model(torch.zeros(1, 2, dtype=torch.long)), torch.zeros(1, 2, dtype=torch.long)).backward()
    optimizer.step()
    V, maxT, L, NH, C = shape
    args = dict(n_layer=L, n_head=NH, n_embd=C, block_size=maxT, bias=bias, vocab_size=V, dropout=0.0)
    torch.save({"model": state, "optimizer": optimizer.state_dict(), "model_args": args, "iter_num": 7,
                "best_val_loss": torch.tensor(1.5), "config": {"dataset": "x", "learning_rate": 6e-4, "compile": True}}, path)  # fmt: skip


def greedy(model, tokens, count):
    """The ids behind a row of tokens, the likeliest each time."""
    for _ in range(count):
        tokens = torch.cat([tokens, model(tokens)[:, -1:].argmax(-1)], 1)
    return tokens.numpy()


def saved(folder):
    """One folder or file a model of parity.SAVED, in NAME.npz its logits and greedy ids, computed in float32 from what was saved."""
    from transformers import GPT2LMHeadModel, GPT2Model

    for seed, (name, (shape, kind, dtype, options)) in enumerate(parity.SAVED.items()):
        torch.manual_seed(seed)
        V, maxT, L, NH, C = shape
        path = folder / name
        if kind.startswith("nanogpt"):
            model = (Bare if kind == "nanogpt bare" else Plain)(*shape)
        else:
            model = HuggingFace(*shape, **options.get("config", {}))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_((parameter + parity.SAVED_STD * torch.randn(parameter.shape)).to(getattr(torch, dtype)))
        if kind.startswith("nanogpt"):
            save_nanogpt(model, path, shape, kind != "nanogpt bare", options.get("prefix", ""))
        else:
            whole = model.model.to(getattr(torch, dtype))
            (whole.transformer if kind == "base" else whole).save_pretrained(path, **options.get("save", {}))
            again = (GPT2Model if kind == "base" else GPT2LMHeadModel).from_pretrained(path, dtype=torch.float32).eval()
            if kind == "base":
                model.model.float().transformer = again
            else:
                model.model = again
        tokens = torch.from_numpy(parity.batch(2, maxT, V)[0]).long()
        model.eval()
        with torch.no_grad():
            found = {"logits": model(tokens).numpy(), "greedy": greedy(model, tokens[:1, :3], maxT - 3)}
        np.savez(folder / f"{name}.npz", tokens=tokens.numpy(), **found)


def trained(folder):
    """A byte-level BPE trained on this repository's words, in both layouts of its files, and the ids of strings by `tokenizers`."""
    from awkward import EOT, awkward
    from tokenizers import ByteLevelBPETokenizer

    whole = ByteLevelBPETokenizer()
    text = (Path(__file__).parents[1] / "README.md").read_text()
    whole.train_from_iterator([text], vocab_size=1500, special_tokens=[EOT], show_progress=False)
    for name in ("bpe json", "bpe pair"):
        (folder / name).mkdir()
    whole.save(str(folder / "bpe json/tokenizer.json"))
    whole.save_model(str(folder / "bpe pair"))
    strings = [string for string in [text, *awkward(4000)] if EOT not in string]
    rows = [found.ids for found in whole.encode_batch(strings)]
    (folder / "strings.json").write_text(json.dumps(strings))
    np.savez(folder / "bpe.npz", ids=np.concatenate(rows), lengths=[len(row) for row in rows])


def parser():
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = top.add_subparsers(dest="command", required=True)
    learn = commands.add_parser("train")
    for name in ("checkpoint", "batch", "out"):
        learn.add_argument(name)
    learn.add_argument("--runs", nargs="+", default=["plain:float32"], help="MODEL:DTYPE, which keys start with")
    learn.add_argument("--updates", type=int, default=10)
    learn.add_argument("--keep", type=int, nargs="*", default=[1, 10], help="write parameters after these")
    settings = {"lr": 1e-4, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight-decay": 0.0, "grad-clip": 0.0}
    for name, value in settings.items():
        learn.add_argument(f"--{name}", type=float, default=value)
    learn.add_argument("--decay-all", action="store_true")
    start = commands.add_parser("init")
    start.add_argument("out")
    start.add_argument("--shape", type=int, nargs=5, required=True, metavar=tuple(SMALL))
    rounding = commands.add_parser("bf16")
    rounding.add_argument("bits")
    rounding.add_argument("out")
    sliding = commands.add_parser("slide")
    for name in ("checkpoint", "ids", "out"):
        sliding.add_argument(name)
    sliding.add_argument("--stride", type=int, nargs="+", required=True)
    commands.add_parser("lines").add_argument("file")
    commands.add_parser("saved").add_argument("folder", type=Path)
    commands.add_parser("store")
    return top


def run(args):
    if args.command == "store":
        store()
    elif args.command == "saved":
        saved(args.folder)
        trained(args.folder)
    elif args.command == "lines":
        for line in Path(args.file).read_text().splitlines():
            run(parser().parse_args(shlex.split(line)))
    elif args.command == "init":
        np.savez(args.out, **init(dict(zip(SMALL, args.shape, strict=True))))
    elif args.command == "bf16":
        floats = torch.from_numpy(np.load(args.bits).view(np.float32))
        np.save(args.out, floats.bfloat16().view(torch.int16).numpy().view(np.uint16))
    elif args.command == "slide":
        np.save(args.out, [slide(args.checkpoint, np.load(args.ids), stride) for stride in args.stride])
    else:
        with np.load(args.batch, allow_pickle=False) as batch:
            tokens, targets = batch["tokens"], batch["targets"]
        out = {}
        for name in args.runs:
            kind, dtype = name.split(":")
            found = train(kind, getattr(torch, dtype), args.checkpoint, tokens, targets, args)
            out |= {f"{name}/{key}": value for key, value in found.items()}
        np.savez(args.out, **out)


if __name__ == "__main__":
    run(parser().parse_args())
