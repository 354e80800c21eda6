"""Trackers outside the run directory's own files: TensorBoard and Weights & Biases, each by its own package, an extra.

Nothing here is imported unless asked for, asks for a login or waits for a network; a run does not depend on them."""

import importlib
import os
import sys
import time
from netrc import NetrcParseError, netrc
from pathlib import Path
from types import ModuleType

from ..errors import UsageError

TAGS = {"loss": "train/loss", "lr": "train/lr", "grad_norm": "train/grad_norm", "tokens_per_s": "train/tokens_per_s",
        "val_loss": "val/loss"}  # fmt: skip


def scalars(event: dict) -> dict[str, float]:
    """The numbers of an event by the names that the trackers show."""
    return {tag: event[key] for key, tag in TAGS.items() if event.get(key) is not None}


def whole_sample(event: dict) -> str:
    """The text of a sample behind the prompt that it goes on from, where one was given."""
    prompt = event.get("prompt")
    return (prompt if isinstance(prompt, str) else "") + event["sample"]


class TensorBoard:
    """Event files in <run>/tensorboard/, a new one for every start; a resumed run purges the steps that it does again."""

    modules = ("tensorboard.summary.writer.event_file_writer", "tensorboard.compat.proto.event_pb2",
               "tensorboard.compat.proto.summary_pb2", "tensorboard.compat.proto.tensor_pb2")  # fmt: skip

    @classmethod
    def load(cls) -> list[ModuleType]:
        """The modules. This name tells tensorboard not to look for TensorFlow, which brings an OpenMP runtime of its own."""
        sys.modules.setdefault("tensorboard.compat.notf", ModuleType("notf"))
        return [importlib.import_module(name) for name in cls.modules]

    def __init__(self, run: Path, step: int, settings: dict):
        writer, self._event, self._summary, self._tensor = self.load()
        self._writer = writer.EventFileWriter(str(run / "tensorboard"), max_queue_size=1000, flush_secs=5)
        if step:
            start = self._event.SessionLog(status=self._event.SessionLog.START)
            self._add(step, session_log=start)  # TensorBoard drops what earlier files hold from this step on

    def write(self, events: list[dict]) -> None:
        for event in events:
            values = [
                self._summary.Summary.Value(tag=tag, simple_value=number) for tag, number in scalars(event).items()
            ]
            values += [self._text(whole_sample(event))] if "sample" in event else []
            if values:
                self._add(event["step"], summary=self._summary.Summary(value=values))

    def _text(self, sample: str):
        plugin = self._summary.SummaryMetadata.PluginData(plugin_name="text")
        verbatim = "\n".join("    " + line for line in sample.split("\n"))  # the page reads Markdown
        tensor = self._tensor.TensorProto(dtype="DT_STRING", string_val=[verbatim.encode()])
        metadata = self._summary.SummaryMetadata(plugin_data=plugin)
        return self._summary.Summary.Value(tag="sample", tensor=tensor, metadata=metadata)

    def close(self) -> None:
        self._writer.close()

    def _add(self, step: int, **what) -> None:
        self._writer.add_event(self._event.Event(wall_time=time.time(), step=step, **what))


class Wandb:
    """A wandb run in <run>/wandb/: online if a key is configured, else offline, to be sent with `wandb sync`.

    The runs of one directory are a group; $WANDB_PROJECT and $WANDB_MODE are obeyed, except that nothing ever asks."""

    @staticmethod
    def load() -> ModuleType:
        return importlib.import_module("wandb")

    def __init__(self, run: Path, step: int, settings: dict):
        wandb, name = self.load(), run.absolute().name
        mode = os.environ.get("WANDB_MODE") or "online"
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "gpt2flat", group=name, name=f"{name} from {step}" if step else name,
            dir=str(run), config=settings, mode="offline" if mode == "online" and not has_key() else mode,
            settings=wandb.Settings(console="off", silent=True),
        )  # fmt: skip
        self._run.define_metric("*", step_metric="step")

    def write(self, events: list[dict]) -> None:
        """Of the updates only the last one: to send one takes 0.15 ms."""
        last = next((event for event in reversed(events) if "loss" in event), None)
        for event in events:
            shown = scalars(event) | ({"sample": whole_sample(event)} if "sample" in event else {})
            if shown and ("loss" not in event or event is last):
                self._run.log(shown | {"step": event["step"]})

    def close(self) -> None:
        self._run.finish()


def has_key() -> bool:
    """Whether wandb would find a key without asking: $WANDB_API_KEY, or the entry that `wandb login` leaves."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("://")[-1].split("/")[0]
    try:
        return netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, NetrcParseError):
        return False


TRACKERS = {"tensorboard": TensorBoard, "wandb": Wandb}


def wanted(text: str) -> list[str]:
    """The names in the text of --report-to, "tensorboard,wandb", "none" or "". Raises UsageError for one that is unknown,
    and for one whose package is missing: call it before the run starts."""
    names = [name.strip() for name in text.split(",") if name.strip() not in ("", "none")]
    for name in dict.fromkeys(names):
        if name not in TRACKERS:
            raise UsageError(f"--report-to {name}: expected {', '.join(TRACKERS)}, or both with a comma")
        try:
            TRACKERS[name].load()
        except ImportError as problem:
            raise UsageError(
                f"--report-to {name} needs the package {name}, which cannot be imported: pip install 'gpt2flat[{name}]' ({problem})"
            ) from None
    return list(dict.fromkeys(names))
