"""Multiple-choice evaluation files: read to the word, hostile ones refused."""

import json

import numpy as np
import pytest

from gpt2flat.data.tokenizer import Tokenizer
from gpt2flat.errors import DataError, FormatError
from gpt2flat.formats.choices import ChoiceFile, ChoiceLines
from samples import ROW, choice_bytes, read_choices


def test_multiple_choice(put):
    first, second = read_choices(put(choice_bytes()))
    assert first.context.tolist() == [7, 8] and first.label == 1 and second.label == 3
    assert [c.tolist() for c in first.completions] == [[1], [2, 3], [4], [5, 6, 9]]
    assert second.context.tolist() == [11] * 9
    with ChoiceFile(put(choice_bytes()), 16) as file:
        assert file.count == 2 and len(list(file)) == len(list(file)) == 2


@pytest.mark.parametrize(
    "data, why",
    [
        (choice_bytes(_1=2), "version 2, expected 1"),
        (choice_bytes(_2=0), "says 0 examples"),
        (choice_bytes(_2=65535), "says 65535 examples"),
        (choice_bytes(_2=1), "bytes behind the last of 1 examples"),
        (choice_bytes(_2=3), "example 2 of 3: the file ends within it"),
        (choice_bytes(_3=0), "the longest example has 0 bytes"),
        (choice_bytes(_3=160), "has 160 bytes, expected fewer than 160 for rows of 16"),
        (choice_bytes(_3=40), "example 1 of 2: has 52 bytes, expected an even number from 12 to 40"),
        (choice_bytes(dict(start=65534)), "the start marker is 65534, expected 65535"),
        (choice_bytes(dict(index=1)), "its number is 1, expected 0"),
        (choice_bytes({}, dict(index=0)), "example 1 of 2: its number is 0, expected 1"),
        (choice_bytes(dict(label=4)), "the right completion is 4, expected 0 to 3"),
        (choice_bytes(dict(count=3)), "the count of completions is 3"),
        (choice_bytes(dict(size=33)), "has 33 bytes"),
        (choice_bytes(dict(size=10)), "has 10 bytes"),
        (choice_bytes(dict(size=40), longest=60), "the file ends within it"),
        (choice_bytes(dict(size=36)), "completion 3 has 3 of the 2 tokens"),
        (choice_bytes(dict(size=38 + 12), {}, longest=60), "found 6 words behind the last completion"),
        (choice_bytes(dict(context=())), "the context has 0"),
        (choice_bytes(dict(context=[1] * 13)), "have 16 tokens, expected fewer than 16"),
        (choice_bytes(dict(context=[1] * 12)), None),
    ],
)
def test_hostile_multiple_choice(put, data, why):
    if why is None:
        read_choices(put(data))
    else:
        with pytest.raises(FormatError, match=why):
            read_choices(put(data))


# --- JSON lines ------------------------------------------------------------------------------------------------------


def line(**changes) -> bytes:
    question = {"ind": 24, "ctx": "ab", "endings": ["a", "bb", "", "c"], "label": 2} | changes
    return json.dumps(question).encode()


def read_lines(path, T=ROW):
    """With a tokenizer of bytes."""
    with ChoiceLines(path, T, lambda text: np.frombuffer(text.encode(), np.uint8).astype(np.int32)) as file:
        assert file.count == len(list(file))
        return list(file)


def test_json_lines(put):
    """Endings stand behind a space, as in llm.c; labels of Hugging Face's copy are texts; the last line may be unfinished."""
    first, second = read_lines(put(line() + b"\n\n" + line(label="3", ctx="é")))
    assert bytes(first.context.tolist()) == b"ab" and first.label == 2 and second.label == 3
    assert [bytes(c.tolist()) for c in first.completions] == [b" a", b" bb", b" ", b" c"]
    assert second.context.tolist() == [0xC3, 0xA9]


@pytest.mark.parametrize(
    "data, why",
    [
        (b"\n \n", "holds no line"),
        (line() + b"\n{", "line 2: is no JSON"),
        (b"\xff", "line 1: is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b"[1]", 'expected an object with "ctx"'),
        (b"3", 'expected an object with "ctx"'),
        (b'{"ctx": "a", "endings": []}', 'expected an object with "ctx"'),
        (line(ctx=""), "\"ctx\" is '', expected a text"),
        (line(ctx=5), "\"ctx\" is '5'"),
        (line(endings=["a"] * 3), "no list of 4"),
        (line(endings="abcd"), "no list of 4"),
        (line(endings=["a", "b", "c", 4]), "no list of 4"),
        *((line(label=label), '"label" is') for label in (4, -1, True, None, 1.0, "4", "", "²", "10", [0])),
        (line(ctx="a" * 13), "line 1: context and completion have 16 tokens, expected fewer than 16"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_hostile_json_lines(put, data, why):
    with pytest.raises((FormatError, DataError), match=why):
        read_lines(put(data))


def test_a_text_that_the_tokenizer_cannot_say(put):
    path = put(line())
    with (
        ChoiceLines(path, ROW, Tokenizer.char("ab ").encode) as file,
        pytest.raises(DataError, match="line 1: character 'c'"),
    ):
        list(file)
