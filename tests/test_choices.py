"""Multiple-choice evaluation files: read to the word, hostile ones refused."""

import pytest

from gpt2flat.errors import FormatError
from gpt2flat.formats.choices import ChoiceFile
from samples import choice_bytes, read_choices


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
