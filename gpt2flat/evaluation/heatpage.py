"""Texts coloured by what each token cost, as one HTML page: a tooltip tells loss, probability, rank and what was likelier."""

import math
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from ..data.tokenizer import Tokenizer
from ..inspection.shell import document, text, tiles
from .heat import NEWLINE, Piece, Told, bin_of, bins

SHOWN = 60  # characters of a token in a tooltip
LIGHT = ("#e3f4e4", "#edf6d3", "#fbf6c3", "#fde7ae", "#fdd2a4", "#fbb69c", "#f79590", "#ee6f86")
DARK = ("#1d3327", "#2b3a22", "#413d1c", "#54401b", "#653e1f", "#763627", "#872c34", "#9b2148")
STYLE = f"""
:root {{ {"; ".join(f"--h{i}: {colour}" for i, colour in enumerate(LIGHT))} }}
@media (prefers-color-scheme: dark) {{ :root {{ {"; ".join(f"--h{i}: {colour}" for i, colour in enumerate(DARK))} }} }}
{" ".join(f".h{i} {{ background: var(--h{i}) }}" for i in range(len(LIGHT)))}
.heat {{ font-size: 14px; line-height: 1.75; padding: 14px 16px }}
.heat span {{ padding: 2px 0; border-radius: 2px }} .heat b {{ font-weight: 400; color: var(--soft); opacity: .6 }}
.heat span:hover {{ outline: 2px solid var(--ink) }}
.heat span:hover::after {{ content: attr(data-i); position: fixed; left: 16px; right: 16px; bottom: 16px; width: fit-content; margin: 0 auto; padding: 8px 14px; white-space: pre-wrap; font: 14px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); border: 1px solid var(--soft); border-radius: 8px; box-shadow: 0 4px 18px #0006; pointer-events: none }}
.legend {{ display: flex; flex-wrap: wrap; gap: 6px 8px; margin: 10px 0; font-size: 13px; align-items: center }}
.legend span {{ padding: 2px 8px; border-radius: 4px; font-variant-numeric: tabular-nums }} .legend i {{ font-style: normal; opacity: .7; margin-left: 4px }}
"""


class Heat(NamedTuple):
    """A text as a model saw it: the names of both, its pieces, and facts of the whole evaluation as (number, what it is)."""

    model: str
    title: str
    pieces: list[Piece]
    facts: list[tuple[str, str]]
    tokenizer: Tokenizer


def page(heats: Iterable[Heat]) -> str:
    """The whole document."""
    return document(
        "What each token cost", "<h1>What each token cost</h1>", *(_section(heat) for heat in heats), style=STYLE
    )


def _section(heat: Heat) -> str:
    counted = [piece.loss for piece in heat.pieces if piece.loss is not None]
    spans = "".join(_span(piece, heat.tokenizer) for piece in heat.pieces)
    return "\n".join([
        f"<section><h2>{text(heat.title)}</h2>", f'<p class="soft">as {text(heat.model)} reads it</p>', tiles(heat.facts),
        _legend(counted), f'<pre class="heat">{spans}</pre></section>',
    ])  # fmt: skip


def _legend(losses: list[float]) -> str:
    count = Counter(map(bin_of, losses))
    parts = (
        f'<span class="h{i}">{text(name)}<i>{100 * count[i] / max(1, len(losses)):.0f} %</i></span>'
        for i, name in enumerate(bins())
    )
    return f'<div class="legend">nats {"".join(parts)}</div>'


def _span(piece: Piece, tokenizer: Tokenizer) -> str:
    shown = text(piece.text).replace("\n", f"<b>{NEWLINE}</b>\n")
    told = "\n".join(_told(token, tokenizer) for token in piece.tokens)
    colour = "" if piece.loss is None else f' class="h{bin_of(piece.loss)}"'
    end = "\n" * shown.endswith("\n")  # outside, or the outline would go on in the next line
    return f'<span{colour} data-i="{text(told)}">{shown.removesuffix(end)}</span>{end}'


def _told(token: Told, tokenizer: Tokenizer) -> str:
    name = _name(token.id, tokenizer)
    if token.loss is None:
        return f"{name}  the first token: nothing predicts it"
    lines = [f"{name}  loss {token.loss:.3f}, probability {_percent(math.exp(-max(0.0, token.loss)))}"]
    if token.before:
        lines.append(
            f"{token.before:,} likelier, most of all {_name(token.best, tokenizer)} with {_percent(token.best_probability)}"
        )
    else:
        lines.append("the likeliest of all")
    return "\n".join(lines)


def _name(token: int, tokenizer: Tokenizer) -> str:
    shown = tokenizer.token_bytes(token).decode("utf-8", "backslashreplace").replace("\n", NEWLINE)
    return f"\u201c{shown[:SHOWN]}\u201d"


def _percent(share: float) -> str:
    if share >= 1e-6:
        return f"{100 * share:.3g} %"
    return f"1 in {float(f'{1 / share:.2g}'):,.0f}" if share > 1e-12 else "less than 1 in 1,000,000,000,000"
