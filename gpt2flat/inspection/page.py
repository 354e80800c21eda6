"""A run as one HTML page: no scripts, nothing from elsewhere, light and dark, the same bytes for the same run.

Whatever a run says is untrusted text: it is escaped, and control characters are shown."""

import json
from collections.abc import Iterable
from html import escape
from inspect import signature

from ..arch.gpt2 import GPT2Config
from ..data.tokenizer import escape_controls
from ..errors import Gpt2FlatError
from ..memory.arena import human
from ..memory.picture import as_svg
from ..model import Model
from ..training.screen import describe, duration
from ..training.settings import SHAPE
from .chart import panel_svg
from .curves import PANELS, smoothing
from .runs import RunRecord

SAMPLES = 40  # of more, as many are taken evenly
SAMPLE, CELL = 20_000, 2_000  # characters that are shown
BIDI = {c: f"\\u{c:04x}" for c in [0x200E, 0x200F, 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]}
POLICY = "default-src 'none'; style-src 'unsafe-inline'"  # a browser loads and runs nothing, whatever slipped through

STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #66707d; --line: #dfe3e8; --paper: #fff; --card: #f6f7f9; --blue: #1f6fb4; --orange: #d9662b; --good: #1d7f52; --bad: #b3362c }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ee; --soft: #98a3b1; --line: #313943; --paper: #14181d; --card: #1c2229; --blue: #5aa9e6; --orange: #f0935c; --good: #5cc795; --bad: #ef7d72 } }
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; overflow-wrap: anywhere }
main { max-width: 1060px; margin: 0 auto; padding: 20px 16px 60px }
h1 { font-size: 26px; margin: 8px 0 2px } h2 { font-size: 18px; margin: 36px 0 10px } h3 { font-size: 13px; margin: 0 0 4px; color: var(--soft); font-weight: 600 }
p { margin: 4px 0 } .soft { color: var(--soft) }
.state { font-size: 13px; padding: 2px 10px; border-radius: 12px; border: 1px solid; vertical-align: 4px; font-weight: 600; white-space: nowrap }
.finished, .running { color: var(--good) } .failed { color: var(--bad) } .stopped { color: var(--orange) }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); gap: 10px; margin: 18px 0 }
.tiles div, figure { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 10px 12px }
.tiles b { display: block; font-size: 19px; font-weight: 600; font-variant-numeric: tabular-nums }
.tiles span { color: var(--soft); font-size: 13px }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 12px }
figure { margin: 0; min-width: 0 } figure svg { display: block; width: 100%; height: auto }
.charts text { font-size: 12px; fill: var(--soft) } .grid { stroke: var(--line); fill: none }
polyline { fill: none; stroke-linejoin: round; stroke: var(--blue) } .line { stroke-width: 1.8 } .raw { stroke-width: .7; opacity: .4 }
polyline.val { stroke: var(--orange); stroke-width: 1.6 } circle.val { fill: var(--orange) }
.key { float: right } .key i { display: inline-block; width: 16px; height: 3px; vertical-align: 4px; margin: 0 4px 0 10px }
.map { overflow-x: auto } .map svg { min-width: 820px } .map svg > rect:first-of-type { fill: none }
.map text { fill: var(--ink) } .map text[fill="#555"] { fill: var(--soft) } .map text[fill="#111"] { fill: #111 }
details { border-top: 1px solid var(--line); padding: 6px 0 } summary { cursor: pointer; font-weight: 600 }
pre { white-space: pre-wrap; background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 10px 12px; margin: 8px 0; font: 13px/1.45 ui-monospace, monospace; unicode-bidi: isolate }
table { border-collapse: collapse; width: 100%; font-size: 14px } td, th { text-align: left; padding: 4px 12px 4px 0; border-top: 1px solid var(--line); vertical-align: top; unicode-bidi: isolate; overflow-wrap: break-word } td:last-child { overflow-wrap: anywhere }
th { color: var(--soft); font-weight: 600 } td:first-child { min-width: 8em } .two { columns: 2 360px; column-gap: 32px } .two tr { break-inside: avoid }
"""


def page(run: RunRecord) -> str:
    """The whole document."""
    title = text(run.name)
    return "\n".join([
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title>\n<style>{STYLE}</style></head>\n<body><main>",
        f'<h1>{title} <span class="state {run.state}">{run.state}</span></h1>',
        f'<p class="soft">{text(_subtitle(run))}</p>',
        _tiles(run), *_curves(run), *_samples(run), *_memory(run), *_events(run), *_checkpoints(run),
        *_section("Settings", _table(run.config.items(), "two")), *_section("Machine", _table(run.env.items())),
        "</main></body>\n</html>\n",
    ])  # fmt: skip


def text(value: object, longest: int = CELL) -> str:
    """Anything as text of the page."""
    shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    shown = shown if len(shown) <= longest else shown[:longest] + " ..."
    return escape(escape_controls(shown).translate(BIDI).encode("utf-8", "replace").decode())


def _subtitle(run: RunRecord) -> str:
    when = f"started {run.started[:16].replace('T', ' ')} UTC" if run.started else "started at an unknown time"
    return f"{when} on {run.env.get('cpu', 'an unknown CPU')}, from {run.config.get('init', '?')}"


def _section(title: str, *parts: str) -> list[str]:
    return [f"<section><h2>{text(title)}</h2>", *parts, "</section>"] if any(parts) else []


def _table(rows: Iterable[Iterable], kind: str = "", head: tuple[str, ...] = ()) -> str:
    rows = ["<tr>" + "".join(f"<td>{text(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    titles = "<tr>" + "".join(f"<th>{text(cell)}</th>" for cell in head) + "</tr>" if head else ""
    return f'<div class="{kind}"><table>{titles}{"".join(rows)}</table></div>' if rows else ""


def _tiles(run: RunRecord) -> str:
    best, steps = run.history.best(), run.config.get("steps")
    losses, rate = run.history.series["loss"].values, run.history.rate()
    tiles = [
        (f"{best[1]:.4f}", f"best validation loss, at step {best[0]}") if best else None,
        (f"{losses[-1]:.4f}", "last training loss") if len(losses) else None,
        (f"{run.updates:,}", f"of {steps:,} updates" if type(steps) is int else "updates"),
        (f"{run.tokens:,}", "tokens"), (duration(run.seconds), "of training"),
        (f"{rate:,.0f}", "tokens per second") if rate is not None else None,
        (human(run.size), "on disk"),
    ]  # fmt: skip
    return (
        '<div class="tiles">'
        + "".join(f"<div><b>{text(a)}</b><span>{text(b)}</span></div>" for a, b in filter(None, tiles))
        + "</div>"
    )


KEY = '<span class="key"><i style="background: var(--blue)"></i>training<i style="background: var(--orange)"></i>validation</span>'


def _curves(run: RunRecord) -> list[str]:
    charts = [(panel, panel_svg(panel, run.history, smoothing(run.updates))) for panel in PANELS]
    figures = [
        f"<figure><h3>{text(panel.title)}{KEY if len(panel.keys) > 1 else ''}</h3>{svg}</figure>"
        for panel, svg in charts
        if svg
    ]
    return _section(
        "Curves", f'<div class="charts">{"".join(figures)}</div>' if figures else "<p class=soft>No update yet.</p>"
    )


def _samples(run: RunRecord) -> list[str]:
    found = run.history.samples
    chosen = (
        sorted({round(i * (len(found) - 1) / (SAMPLES - 1)) for i in range(SAMPLES)})
        if len(found) > SAMPLES
        else range(len(found))
    )
    blocks = [
        f"<details{' open' * (i == len(found) - 1)}><summary>step {found[i][0]:,}</summary><pre>{text(found[i][1], SAMPLE)}</pre></details>"
        for i in chosen
    ]
    some = f'<p class="soft">{len(blocks)} of {len(found)}.</p>' if len(blocks) < len(found) else ""
    return _section("Samples", some, *blocks[::-1])


def _memory(run: RunRecord) -> list[str]:
    try:
        config = GPT2Config(**{name: run.config[name] for name in SHAPE})
        options = {name: run.config[name] for name in signature(Model).parameters if name in run.config}
        model = Model(config, **options)
        B, T = run.config["batch_size"], run.config["seq_len"]
        layouts = model.layouts(model.program(B, T))
        title = describe(model, text(run.name), B, T)
    except (Gpt2FlatError, KeyError, TypeError, ValueError, OverflowError) as problem:
        return _section("Memory", f'<p class="soft">{text(f"cannot be drawn here: {problem}")}</p>')
    return _section("Memory", f'<p class="soft">{title}</p><figure class="map">{as_svg(layouts, "")}</figure>')


def _events(run: RunRecord) -> list[str]:
    rows = [(f"{event['step']:,}", ", ".join(f"{k}: {v}" if v else k for k, v in event.items() if k != "step"))
            for event in run.history.events if "saved" not in event]  # fmt: skip
    told = []
    if run.history.skipped:
        told.append(f'<p class="soft">{run.history.skipped:,} updates were left out.</p>')
    if run.history.broken:
        told.append(f'<p class="soft">{run.history.broken:,} lines of metrics.jsonl are no records.</p>')
    return _section("What happened", *told, _table(rows[-200:], head=("step", "event")))


def _checkpoints(run: RunRecord) -> list[str]:
    rows = [
        (f"{c.step:,}", c.path.name, human(c.size), c.problem or "all sizes as in its manifest")
        for c in run.checkpoints
    ]
    return _section("Checkpoints", _table(rows, head=("step", "folder", "size", "")))
