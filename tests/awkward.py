"""Strings that tokenizers stumble over, from a seed; and tiktoken's own encoder, to compare with."""

import random
from collections.abc import Iterator

import tiktoken
from tiktoken_ext.openai_public import r50k_pat_str

EOT = "<|endoftext|>"
SPACES = " \n\t\r\v\f\x85\xa0\u1680\u2003\u2028\u202f\u3000\x1c\x1f\u200b\ufeff"
PIECES = [
    "a", "the", "Zebra", "don't", "I'll", "'s", "'re've", "''", "'S", "é", "naïve", "ß", "日本語", "한국어", "ไทย", "हिन्दी",
    "0", "1234567890", "٣", "½", "Ⅷ", "!", "...", "?!", "_", "--", "—", "„“", "$", "\0", "\x1b[31m", "\x7f", "\ufffd", "\ue000",
    "\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "a\u0301\u0323", "\u202eabc", "\U0010fffd", "\U0010ffff", EOT, "<|", "|>",
    "<|endoftext|", "http://a.b/c?d=e&f", "x" * 70, "^" * 40, "0x7fFF", "「。」",
]  # fmt: skip


def awkward(count: int, seed: int = 0) -> Iterator[str]:
    """`count` strings without surrogates: pieces, white space in runs, characters from anywhere."""
    rng = random.Random(seed)
    for _ in range(count):
        parts = []
        for _ in range(rng.randrange(12)):
            kind = rng.random()
            if kind < 0.45:
                parts.append(rng.choice(PIECES))
            elif kind < 0.85:
                spaces = SPACES if rng.random() < 0.3 else " \n"
                parts.append("".join(rng.choices(spaces, k=rng.choice((1, 1, 1, 2, 3, 4, 9)))))
            else:
                point = rng.randrange(rng.choice((0x80, 0x800, 0x10000, 0x110000)))
                parts.append(chr(point) if not 0xD800 <= point < 0xE000 else "\ud7ff")
        yield "".join(parts)


def plain(tokens, eot: int) -> tiktoken.Encoding:
    """What tiktoken itself makes of a vocabulary whose ids are ranks, with its own pattern."""
    ranks = {token: rank for rank, token in enumerate(tokens) if rank != eot}
    return tiktoken.Encoding("plain", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={EOT: eot})
