"""From settings to a run that is ready: a fresh one, or one that goes on where a checkpoint was taken. All is checked, and
nothing of a fresh run is written, before its directory is reserved."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

from ..benchmarks.machine import faster_precision
from ..data.tokens import TokenLoader
from ..errors import CheckpointError, DataError, UsageError
from ..formats import llmc_state
from ..kernels import Threads, default_threads
from ..model import Model
from ..weights import find_shape
from . import config
from .checkpoints import Checkpoint, Checkpoints
from .facts import allowed, changes, compare, facts_of, made_with, own_settings
from .inputs import Data, Start, check_shards, find_data, find_start, prompt_ids, shape_of
from .run import Run, find_run, new_run
from .saving import load
from .settings import SETTINGS, SHAPE, accumulation, resolve, settle, without_other_data
from .trackers import wanted
from .trainer import Trainer


@dataclass
class Ready:
    """A run that can start. facts: what a later resume compares. resumed: the step it goes on from, None for a fresh run;
    notes: what to tell about that; changed: settings that differ from the run's, name: (before, now); other_data: other batches
    follow than the checkpoint says."""

    s: SimpleNamespace
    run: Run
    trainer: Trainer
    data: Data
    validation: TokenLoader | None
    prompt: object
    title: str
    threads: Threads
    facts: dict
    resumed: int | None = None
    notes: list[str] = field(default_factory=list)
    changed: dict[str, tuple] = field(default_factory=dict)
    other_data: bool = False

    @property
    def model(self) -> Model:
        return self.trainer.model


def prepare(given: dict[str, object], folders: list[Path], open_kernels: Callable) -> Ready:
    """given: flags; folders: where data is looked for; open_kernels(name or None): the kernels. Raises Gpt2FlatError."""
    if given.get("config"):
        given = _with_file(config.read(given["config"]), given)
    if wish := given.get("resume"):
        run = find_run(wish, given.get("out"))
        if run:
            run.lock()
            try:
                if wish == "1" and run.is_bare:  # killed before it had anything
                    return _fresh(given, folders, open_kernels, run)
                return (_adopt if run.is_llmcs else _resume)(run, given, folders, open_kernels)
            except BaseException:
                run.release()
                raise
    return _fresh(given, folders, open_kernels)


def _with_file(file: dict[str, object], given: dict[str, object]) -> dict[str, object]:
    """Flags over the settings of a file; steps beside epochs is what a run's epochs came to."""
    if "epochs" in given or ("epochs" in file and "steps" not in given):
        file.pop("steps", None)
    if "steps" in given:
        file.pop("epochs", None)
    return without_other_data(file, given) | given


def _fresh(given: dict[str, object], folders: list[Path], open_kernels: Callable, run: Run | None = None) -> Ready:
    """run: an existing directory that it goes into, locked."""
    start = find_start(given.get("init"), given.get("tokenizer"), folders)
    shape = start.shape()
    if start.path is None:
        del shape["vocab_size"]  # the tokenizer decides
    s = resolve(given, shape, start.path is not None)
    wanted(s.report_to or "")  # a package that is missing is told now
    model_config = shape_of(start, given)
    kernels = open_kernels(None if s.backend == "auto" else s.backend)
    data = find_data(s, start, folders)
    if start.path is None:
        model_config = replace(model_config, vocab_size=data.vocab_size, padded_vocab_size=0)
    batches, validation = _loaders(s, data, model_config.vocab_size)
    check_shards(data.train + data.val, model_config.vocab_size)
    prompt = prompt_ids(s.sample_prompt, data.tokenizer)
    target = run or new_run(s.out, start.name, data.name)  # the name; it is taken last
    if s.precision == "auto":
        s.precision = faster_precision(kernels, default_threads(s.threads).count)
    options = _options(s, kernels)
    Model(model_config, **options).plan(
        s.batch_size, s.seq_len, training=True
    )  # what cannot fit fails before a weight is drawn
    if start.path:
        model = Model.load(start.path, block_size=model_config.block_size, **options)
    else:
        model = Model.init(model_config, s.seed, **options)
    model.plan(s.batch_size, s.seq_len, training=True)
    facts = facts_of(s, model, data)
    if not run:
        target.reserve()
    settled = {name: getattr(model_config, name) for name in SHAPE}
    settled |= {
        "init": start.asked,
        "threads": model.threads,
        "out": str(target.path),
        "dataset": None if s.train_data else data.name,  # others may come to lie beside it
        "steps": _steps(s, batches),
    }
    threads = default_threads(s.threads)
    s = SimpleNamespace(**(vars(s) | settled))
    title = str(start.path) if start.path else f"{start.name} from scratch, seed {s.seed}"
    facts["settings"] = made_with(s)
    return Ready(s, target, Trainer(model, batches, s), data, validation, prompt, title, threads, facts)


def _adopt(run: Run, given: dict[str, object], folders: list[Path], open_kernels: Callable) -> Ready:
    """A run of llm.c's, in its directory, with the flags of its own command line: weights, AdamW's state and the place in the data
    are those of its newest checkpoint. Raises CheckpointError, FormatError."""
    step, files = llmc_state.newest(run.path)
    p = _fresh(given | {"init": str(files.model)}, folders, open_kernels, run)
    model, batches = p.model, p.trainer.batches
    with llmc_state.StateFile(files.state, model.params.floats.size) as state:
        state.read_into(model.m.floats, model.v.floats, model.params.floats)
        data = state.loader(len(batches.shards))
        samples = batches.samples(batches.shards[data["order"][data["shard"]]])
        if state.samples not in (None, samples):
            raise CheckpointError(
                f"{files.state}: its shard has {state.samples} samples, here are {samples}: give llm.c's -i, -b and -t"
            )
    fresh = Trainer(model, batches, p.s).state()
    p.trainer.restore(fresh | {"step": step, "t": step, "drawn": step, "data": data})
    p.resumed, p.title = step, str(files.model)
    p.notes.append("llm.c's outlier windows and epochs are not in its files: both start anew")
    return p


def _resume(run: Run, given: dict[str, object], folders: list[Path], open_kernels: Callable) -> Ready:
    before = config.stored(run.config)
    for name in ("init", *SHAPE):
        if given.get(name, before[name]) != before[name]:
            raise UsageError(
                f"{SETTINGS[name].flag} {given[name]}: {run.path} goes on with {before[name]}: leave it out, or --resume"
            )
    s = settle(before, {name: value for name, value in given.items() if name not in ("out", "resume")})
    wanted(s.report_to or "")
    s.out = str(run.path)
    store = Checkpoints(run.checkpoints, run.id)
    found = store.newest()
    notes = [f"passed over {path}: {why}" for path, why in store.passed_over]
    if found is None:
        raise CheckpointError(
            "; ".join([f"{run.path}: holds no checkpoint that is whole, so there is nothing to resume", *notes])
            + ": --resume 1 starts it again, with all its flags" * run.is_bare
        )
    made, expected = settings_at(run, found), settings_at(run, found, later=True)
    edited = {name: value for name, value in changes(expected, before).items() if name not in given}
    if edited and "settings" not in allowed(s):
        told = ", ".join(f"{name} {was} -> {value}" for name, (was, value) in edited.items())
        raise CheckpointError(
            f"{run.config}: not what the run was made with: {told}: give flags, or --override settings to have it so"
        )
    p = reopen(run, found, s, folders, open_kernels)
    if found.step > s.steps:
        raise UsageError(f"{run.path}: {found.step} updates are done, --steps {s.steps} leaves nothing to do")
    p.changed = changes(made, vars(s))
    p.notes, p.resumed, p.threads = notes + p.notes, found.step, default_threads(given.get("threads"))
    return p


def settings_at(run: Run, found: Checkpoint, later: bool = False) -> dict[str, object]:
    """All settings that held right after a checkpoint: its own, and what was typed when the run went on from there; later: also
    what was typed at later steps, as config.toml has it."""
    settings = own_settings(found)
    for step, typed in sorted(config.history(run.path).resumed.items()):
        if step == found.step or (later and step > found.step):
            settings |= typed
    return settings


def reopen(
    run: Run,
    found: Checkpoint,
    s: SimpleNamespace,
    folders: list[Path],
    open_kernels: Callable,
    **options,
) -> Ready:
    """The run as it was when a checkpoint of it was taken, but with the settings s. options: other ones of the model.

    Raises CheckpointError for data, a vocabulary or kernels that are not those of the run, unless s.override names them."""
    kernels = open_kernels(None if s.backend == "auto" else s.backend)
    if s.precision == "auto":
        s.precision = faster_precision(kernels, default_threads(s.threads).count)
    model = Model(find_shape(found.model)[0], **_options(s, kernels) | options)
    try:
        data = find_data(s, Start(str(s.init), found.model, model.config), folders)
    except DataError as problem:
        raise DataError(
            f"{problem} (paths in {run.config} are as they were typed: start it from the same folder)"
        ) from None
    batches, validation = _loaders(s, data, model.config.vocab_size)
    check_shards(data.train + data.val, model.config.vocab_size)
    model.plan(s.batch_size, s.seq_len, training=True)
    s.steps, s.threads = _steps(s, batches), model.threads
    facts = facts_of(s, model, data)
    notes, same = compare(found, facts, s)
    trainer = Trainer(model, batches, s)
    trainer.restore(load(model, found), same)
    prompt = prompt_ids(s.sample_prompt, data.tokenizer)
    trainer.forget(config.history(run.path).forgotten)
    threads = default_threads(s.threads)
    p = Ready(s, run, trainer, data, validation, prompt, str(found.path), threads, facts, notes=notes)
    p.other_data = not same
    return p


def _loaders(s, data: Data, vocab_size: int) -> tuple[TokenLoader, TokenLoader | None]:
    shape = (s.batch_size, s.seq_len, vocab_size)
    batches = TokenLoader(data.train, *shape, shuffle=not s.overfit, seed=s.data_seed)
    return batches, TokenLoader(data.val, *shape) if data.val and s.val_every else None


def _steps(s, batches: TokenLoader) -> int:
    epoch = batches.batches / accumulation(s)
    if s.epochs is not None:
        return max(1, round(s.epochs * epoch))
    return max(1, round(epoch)) if s.steps < 0 else s.steps


def _options(s, kernels) -> dict:
    return dict(attention=s.attention, threads=s.threads, kernels=kernels, trace=s.trace, precision=s.precision,
                recompute=s.recompute, fused=s.fused, dropout=s.dropout)  # fmt: skip
