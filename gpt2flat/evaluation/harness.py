"""EleutherAI's lm-evaluation-harness on our models, the extra gpt2flat[harness]; imported only where it is asked for.

python -m gpt2flat.evaluation.harness run --model gpt2flat --model_args path=RUN --tasks NAME      is its own command line."""

import contextlib
import math
import os
import sys
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np

from ..data.tokenizer import Tokenizer
from ..errors import DataError, Gpt2FlatError, UsageError
from ..generation.sampling import Sampling
from ..generation.stream import stream
from ..generation.text import Texts
from ..model import Model
from ..training.inputs import tokenizer_of
from ..training.run import find_checkpoint
from .scoring import Row, score_and_look
from .sets import BATCH_TOKENS, How, Opened

try:
    import lm_eval
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError:
    raise UsageError("lm-evaluation-harness is not installed: pip install 'gpt2flat[harness]'") from None

GRAIN, MIX = 64, 16
NEW_TOKENS = 256  # of an answer, where the task does not say; as the harness's own models
GENERATION = {"until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p"}


@register_model("gpt2flat")
class Adapter(TemplateLM):
    """A model and its tokenizer as the harness asks for them. A text begins with end-of-text; log-likelihoods are in nats."""

    def __init__(self, model: Model, tokenizer: Tokenizer | None, batch_size: int | None = None):
        """batch_size: rows at once (about BATCH_TOKENS tokens). Raises UsageError without a tokenizer."""
        super().__init__()
        if tokenizer is None:
            raise UsageError("the tasks of the harness are text, and no tokenizer is beside the model")
        self.model, self.encoding = model, tokenizer
        self._rows = batch_size or max(1, BATCH_TOKENS // GRAIN)

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict, additional_config: dict | None = None) -> "Adapter":
        """path, and threads, precision of Model.load; batch_size. Raises UsageError for other arguments."""
        given = {**(additional_config or {}), **arg_dict}
        for ignored in ("device", "max_batch_size"):
            given.pop(ignored, None)
        path, batch = given.pop("path", None), given.pop("batch_size", None)
        if unknown := given.keys() - {"threads", "precision"}:
            raise UsageError(f"--model_args {', '.join(sorted(unknown))}: expected path, threads, precision")
        where = find_checkpoint(None if path is None else str(path))
        model = Model.load(where, recompute=3, **given)
        return cls(model, tokenizer_of(where, model.config.vocab_size), int(batch) if str(batch).isdigit() else None)

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict | None = None) -> "Adapter":
        return cls.create_from_arg_obj(lm_eval.utils.simple_parse_args_string(arg_string), additional_config)

    @property
    def eot_token_id(self) -> int:
        return self.encoding.eot

    @property
    def max_length(self) -> int:
        return self.model.config.block_size

    @property
    def tokenizer_name(self) -> str:
        return f"{self.encoding.kind}-{self.encoding.vocab_size}"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs) -> list[int]:
        return self.encoding.encode(string).tolist()

    def _loglikelihood_tokens(self, requests, disable_tqdm: bool = False, **kwargs) -> list[tuple[float, bool]]:
        found = []
        for (key, *_), answer in zip(
            requests, self._scored([(c, e) for _, c, e in requests], disable_tqdm), strict=True
        ):
            self.cache_hook.add_partial("loglikelihood", key, answer)
            found.append(answer)
        return found

    def _scored(self, pairs: list[tuple[list[int], list[int]]], quiet: bool) -> Iterator[tuple[float, bool]]:
        """The log-likelihood of each continuation behind its context, of which the last ids count that fit, and whether it is the
        likeliest at every id."""
        rows = (_row(context, continuation, self.max_length) for context, continuation in pairs)
        scored = score_and_look(self.model, (row for row in rows if row), self._rows, GRAIN, MIX, _is_likeliest)
        for _, continuation in _progress(pairs, "log-likelihoods", quiet):
            if not continuation:
                yield 0.0, True
                continue
            losses, likeliest = next(scored)
            yield -math.fsum(losses.tolist()), bool(likeliest.all())

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        found = []
        for (text,) in _progress([request.args for request in requests], "texts", disable_tqdm):
            windows = get_rolling_token_windows(
                self.tok_encode(text), self.prefix_token_id, self.max_length, context_len=1
            )
            found.append(sum(loss for loss, _ in self._scored([make_disjoint_window(w) for w in windows], True)))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), found[-1])
        return found

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        """Answers up to a stop string, of requests with the same settings together; drawn only where do_sample says so."""
        answers: dict[int, str] = {}
        together: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            together.setdefault(repr(sorted(request.args[1].items())), []).append(i)
        bar = iter(_progress(requests, "answers", disable_tqdm))
        for members in together.values():
            sampling, n, stops = _settings(requests[members[0]].args[1])
            texts = Texts(self.encoding, stops)
            prompts = [np.array(self.tok_encode(requests[i].args[0]) or [self.eot_token_id], np.int32) for i in members]
            for token in stream(self.model, prompts, n, sampling, ends=texts.ends, batch=self._rows):
                if token.end:
                    i = members[token.sequence]
                    answers[i] = texts.pop(token.sequence).whole
                    self.cache_hook.add_partial("generate_until", requests[i].args, answers[i])
                    next(bar)
        return [answers[i] for i in range(len(requests))]


def _row(context: list[int], continuation: list[int], T: int) -> Row | None:
    """Raises DataError for a continuation that the model cannot see as a whole."""
    if not continuation:
        return None
    if len(continuation) > T:
        raise DataError(
            f"a continuation has {len(continuation)} tokens, and the model takes {T}: this task is too long for it"
        )
    ids = np.array((context + continuation)[-T - 1 :], np.int32)
    return Row(ids, len(ids) - len(continuation))


def _is_likeliest(logits: np.ndarray, ids: np.ndarray) -> np.ndarray:
    return logits.argmax(1) == ids


def _settings(given: dict) -> tuple[Sampling, int, tuple[str, ...]]:
    """(how to draw, new tokens at most, stop strings). Raises UsageError for a setting that is not served."""
    if unknown := given.keys() - GENERATION:
        raise UsageError(
            f"the task's generation_kwargs have {', '.join(sorted(unknown))}: expected {', '.join(sorted(GENERATION))}"
        )
    until = given.get("until") or []
    drawn = {name: given[name] for name in ("temperature", "top_k", "top_p") if given.get(name) is not None}
    sampling = Sampling(**drawn) if given.get("do_sample") else Sampling(temperature=0)
    stops = [until] if isinstance(until, str) else until
    return sampling, int(given.get("max_gen_toks", NEW_TOKENS)), tuple(stop for stop in stops if stop)


def _progress(items: list, what: str, quiet: bool):
    return lm_eval.api.model.tqdm(items, desc=what, disable=quiet or not sys.stderr.isatty())


# --- tasks as sets ---------------------------------------------------------------------------------------------------


@cache
def _manager(folder: str | None, with_its_own: bool) -> TaskManager:
    """What tasks there are; to read the harness's own, thousands of files, takes many seconds."""
    return TaskManager(include_path=folder, include_defaults=with_its_own)


class Task:
    """A task or group of the harness, by name; its metrics are known once it has been measured."""

    def __init__(self, name: str, folder: str | None = None, fewshot: int | None = None):
        """folder: where tasks of your own are. Raises UsageError for a name that is not among them."""
        self.title, self.metrics, self._fewshot = name, (), fewshot
        folder = os.path.abspath(folder) if folder else None
        self._manager = _manager(folder, not folder)
        if name not in self._manager.all_tasks and folder:
            self._manager = _manager(folder, True)
        if name not in self._manager.all_tasks:
            raise UsageError(
                f"--tasks {name}: the harness has no such task: lm_eval ls tasks lists them, --task-folder adds some"
            )

    def measure(self, opened: Opened, how: How, told: Callable[[int, int], None]) -> dict[str, object]:
        """Raises DataError for a task whose data cannot be had."""
        adapter = Adapter(opened.model, opened.tokenizer, how.batch_size)
        try:
            with contextlib.redirect_stdout(sys.stderr):
                found = lm_eval.simple_evaluate(adapter, tasks=[self.title], num_fewshot=self._fewshot, limit=how.limit,
                                                task_manager=self._manager, log_samples=False)  # fmt: skip
        except Gpt2FlatError:
            raise
        except (
            Exception
        ) as problem:  # tasks are programs of others: no such data, no network, a metric without its package
            raise DataError(f"task {self.title}: {type(problem).__name__}: {problem}") from None
        numbers = {
            key.replace(",none", "").replace(",", " "): value for key, value in found["results"][self.title].items()
        }
        numbers = {key: float(value) for key, value in numbers.items() if isinstance(value, int | float)}
        counted = found.get("n-samples", {}).get(self.title, {}).get("effective")
        self.metrics = tuple(key for key in numbers if "_stderr" not in key and key != "sample_len")
        return numbers | {"questions": counted}

    def facts(self, found: dict[str, object]) -> str:
        count = "" if found["questions"] is None else f", {found['questions']:,} questions"
        shots = "" if self._fewshot is None else f", {self._fewshot} shots"
        return f"lm-evaluation-harness {lm_eval.__version__}{count}{shots}"


if __name__ == "__main__":
    cli_evaluate()
