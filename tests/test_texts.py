"""The text of a sequence up to a stop string, however tokens cut it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2flat.data.tokenizer import Tokenizer
from gpt2flat.errors import UsageError
from gpt2flat.generation.text import Text, Texts

GPT2, BYTE = Tokenizer.gpt2(), Tokenizer.byte()


def run(text: Text, ids) -> str:
    """What was shown, piece by piece, up to the end."""
    shown = ""
    for token in ids:
        text.feed(int(token))
        shown += text.take()
        if text.stopped:
            return shown
    text.finish()
    return shown + text.take()


def cut(whole: str, stops) -> str:
    """Up to the first stop string that is complete, of several the longest."""
    for end in range(len(whole) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if whole[:end].endswith(stop):
                return whole[: end - len(stop)]
    return whole


@settings(max_examples=300)
@given(st.text("ab€😀", max_size=20), st.lists(st.text("ab€😀", min_size=1, max_size=4), max_size=3))
def test_nothing_of_a_stop_string_is_shown(whole, stops):
    for tokenizer in (GPT2, BYTE):
        text = Text(tokenizer, tuple(stops))
        assert run(text, tokenizer.encode(whole)) == cut(whole, stops) == text.whole
    assert bool(text.stopped) == (cut(whole, stops) != whole or any(whole.endswith(stop) for stop in stops))


def test_a_stop_string_across_tokens_and_within_one():
    ids = GPT2.encode("The end of the story. User: what now?")
    assert run(Text(GPT2, ("User:",)), ids) == "The end of the story. "
    assert run(Text(GPT2, ("y. U",)), ids) == "The end of the stor"
    assert run(Text(GPT2, ("tor",)), ids) == "The end of the s"


def test_what_might_become_one_waits():
    text, shown = Text(BYTE, ("\n\n",)), []
    for token in b"a\nb\n":
        text.feed(token)
        shown.append(text.take())
    assert shown == ["a", "", "\nb", ""]
    text.finish()
    assert text.take() == "\n" and text.stopped is None


def test_half_characters_and_the_end_of_text():
    assert run(Text(BYTE), [*"é".encode(), 0xE2, 0x82]) == "é\ufffd"
    assert run(Text(BYTE, ("\ufffdx",)), [97, 0xFF, 256]) == "a\ufffd"
    assert run(Text(None), [5, 17]) == "5 17 "


def test_texts_end_sequences():
    texts = Texts(BYTE, ("ab",))
    assert [texts.ends(0, token) for token in b"xa"] == [None, None]
    assert texts.ends(1, 256) == "stop" and texts.ends(0, ord("b")) == "stop"
    assert texts.pop(0).whole == "x" and texts.pop(1).whole == ""


@pytest.mark.parametrize("tokenizer, stops", [(BYTE, ("a", "")), (None, ("a",))])
def test_stop_strings_that_cannot_be(tokenizer, stops):
    with pytest.raises(UsageError):
        Texts(tokenizer, stops)
