"""A run as one HTML page: no scripts, nothing from elsewhere, light and dark, the same bytes for the same run.

Whatever a run says is untrusted text: it is escaped, and control characters are shown."""

from collections.abc import Iterable
from inspect import signature

from ..arch.gpt2 import GPT2Config
from ..errors import Gpt2FlatError
from ..memory.arena import human
from ..memory.picture import as_svg
from ..model import Model
from ..training.screen import describe, duration
from ..training.settings import SHAPE
from .chart import panel_svg
from .curves import PANELS, smoothing
from .runs import RunRecord
from .shell import document, text, tiles

SAMPLES = 40  # of more, as many are taken evenly
SAMPLE = 20_000  # characters that are shown
STYLE = """
.state { font-size: 13px; padding: 2px 10px; border-radius: 12px; border: 1px solid; vertical-align: 4px; font-weight: 600; white-space: nowrap }
.finished, .running { color: var(--good) } .failed { color: var(--bad) } .stopped { color: var(--orange) }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 12px }
.charts text { font-size: 12px; fill: var(--soft) } .grid { stroke: var(--line); fill: none }
polyline { fill: none; stroke-linejoin: round; stroke: var(--blue) } .line { stroke-width: 1.8 } .raw { stroke-width: .7; opacity: .4 }
polyline.val { stroke: var(--orange); stroke-width: 1.6 } circle.val { fill: var(--orange) }
.key { float: right } .key i { display: inline-block; width: 16px; height: 3px; vertical-align: 4px; margin: 0 4px 0 10px }
.map { overflow-x: auto } .map svg { min-width: 820px } .map svg > rect:first-of-type { fill: none }
.map text { fill: var(--ink) } .map text[fill="#555"] { fill: var(--soft) } .map text[fill="#111"] { fill: #111 }
"""


def page(run: RunRecord) -> str:
    """The whole document."""
    return document(
        run.name,
        f'<h1>{text(run.name)} <span class="state {run.state}">{run.state}</span></h1>',
        f'<p class="soft">{text(_subtitle(run))}</p>',
        _tiles(run), *_curves(run), *_samples(run), *_memory(run), *_events(run), *_checkpoints(run),
        *_section("Settings", _table(run.config.items(), "two")), *_section("Machine", _table(run.env.items())),
        style=STYLE,
    )  # fmt: skip


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
    facts = [
        (f"{best[1]:.4f}", f"best validation loss, at step {best[0]}") if best else None,
        (f"{losses[-1]:.4f}", "last training loss") if len(losses) else None,
        (f"{run.updates:,}", f"of {steps:,} updates" if type(steps) is int else "updates"),
        (f"{run.tokens:,}", "tokens"), (duration(run.seconds), "of training"),
        (f"{rate:,.0f}", "tokens per second") if rate is not None else None,
        (human(run.size), "on disk"),
    ]  # fmt: skip
    return tiles(facts)


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
