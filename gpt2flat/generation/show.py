"""What the generate command writes of a stream of ids, as parts (sequence, text, whether that is its last): text, or
JSON lines."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator

from .stream import Token
from .text import Texts

Part = tuple[int, str, bool]
RULE = "---\n"  # between sequences


def as_text(tokens: Iterable[Token], texts: Texts, prompts: list[str], each: int) -> Iterator[Part]:
    """Each prompt and what follows it as it is made. prompts: as they are to be shown; `each` sequences go on from one."""
    begun = set()
    for token in tokens:
        i = token.sequence
        head = "" if i in begun else RULE * (i > 0) + prompts[i // each]
        begun.add(i)
        text = texts.pop(i) if token.end else texts[i]
        yield i, head + text.take() + "\n" * bool(token.end), bool(token.end)


def as_json(tokens: Iterable[Token], texts: Texts, prompts: list[str], each: int, eot: int | None) -> Iterator[Part]:
    """One object for each sequence: the prompt, the text behind it, why it ended ("length", "stop", "eot"), all ids
    that were made, those of a stop string among them, and the log-probability of each by the model's own distribution,
    in nats; of beams the score."""
    made = defaultdict(list)
    for token in tokens:
        i = token.sequence
        made[i].append(token)
        if not token.end:
            continue
        text, past = texts.pop(i), made.pop(i)
        found = {
            "sequence": i, "prompt": prompts[i // each], "text": text.whole, "end": "eot" if token.id == eot else token.end,
            "ids": [one.id for one in past], "log_probs": [one.log_prob for one in past],
        } | ({} if token.score is None else {"score": token.score})  # fmt: skip
        yield i, json.dumps(found) + "\n", True


def in_order(parts: Iterable[Part]) -> Iterator[str]:
    """The texts of sequence 0, then of 1 ...: those of the first that is not done at once, the others when their turn
    comes."""
    waiting, done, current = defaultdict(list), set(), 0
    for i, text, last in parts:
        if text:
            waiting[i].append(text)
        if last:
            done.add(i)
        while waiting[current] or current in done:
            yield "".join(waiting.pop(current))
            if current not in done:
                break
            done.remove(current)
            current += 1
    # fewer beams were found than asked for: some numbers are not there
    yield from ("".join(waiting[i]) for i in sorted(waiting) if waiting[i])
