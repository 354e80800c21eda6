"""The shell of every page: no scripts, nothing from elsewhere, light and dark.

Whatever a page says is untrusted text: it is escaped, and control characters are shown."""

import json
from collections.abc import Iterable
from html import escape

from ..data.tokenizer import escape_controls

CELL = 2_000  # characters that are shown
POLICY = "default-src 'none'; style-src 'unsafe-inline'"  # a browser loads and runs nothing, whatever slipped through

STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #66707d; --line: #dfe3e8; --paper: #fff; --card: #f6f7f9; --blue: #1f6fb4; --orange: #d9662b; --good: #1d7f52; --bad: #b3362c }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ee; --soft: #98a3b1; --line: #313943; --paper: #14181d; --card: #1c2229; --blue: #5aa9e6; --orange: #f0935c; --good: #5cc795; --bad: #ef7d72 } }
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; overflow-wrap: anywhere }
main { max-width: 1060px; margin: 0 auto; padding: 20px 16px 60px }
h1 { font-size: 26px; margin: 8px 0 2px } h2 { font-size: 18px; margin: 36px 0 10px } h3 { font-size: 13px; margin: 0 0 4px; color: var(--soft); font-weight: 600 }
p { margin: 4px 0 } .soft { color: var(--soft) }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); gap: 10px; margin: 18px 0 }
.tiles div, figure { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 10px 12px }
.tiles b { display: block; font-size: 19px; font-weight: 600; font-variant-numeric: tabular-nums }
.tiles span { color: var(--soft); font-size: 13px }
figure { margin: 0; min-width: 0 } figure svg { display: block; width: 100%; height: auto }
details { border-top: 1px solid var(--line); padding: 6px 0 } summary { cursor: pointer; font-weight: 600 }
pre { white-space: pre-wrap; background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 10px 12px; margin: 8px 0; font: 13px/1.45 ui-monospace, monospace; unicode-bidi: isolate }
table { border-collapse: collapse; width: 100%; font-size: 14px } td, th { text-align: left; padding: 4px 12px 4px 0; border-top: 1px solid var(--line); vertical-align: top; unicode-bidi: isolate; overflow-wrap: break-word } td:last-child { overflow-wrap: anywhere }
th { color: var(--soft); font-weight: 600 } td:first-child { min-width: 8em } .two { columns: 2 360px; column-gap: 32px } .two tr { break-inside: avoid }
"""


def document(title: str, *parts: str, style: str = "") -> str:
    """A whole page; parts are HTML, `style` what they need beside STYLE."""
    return "\n".join([
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{text(title)}</title>\n<style>{STYLE}{style}</style></head>\n<body><main>",
        *parts,
        "</main></body>\n</html>\n",
    ])  # fmt: skip


def text(value: object, longest: int = CELL) -> str:
    """Anything as text of the page."""
    shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    shown = shown if len(shown) <= longest else shown[:longest] + " ..."
    return escape(escape_controls(shown).encode("utf-8", "replace").decode())


def tiles(facts: Iterable[tuple[object, str] | None]) -> str:
    """Numbers side by side, each with what it is; None is left out."""
    found = "".join(f"<div><b>{text(a)}</b><span>{text(b)}</span></div>" for a, b in filter(None, facts))
    return f'<div class="tiles">{found}</div>'
