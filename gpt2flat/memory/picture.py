"""The memory map of an arena as text and as an SVG picture, drawn from the layouts alone."""

from html import escape

from .arena import human
from .layout import Layout

COLOURS = {
    "params": "#8fb3d9",
    "grads": "#f08a85",
    "m": "#72b7b2",
    "v": "#54a24b",
    "kv": "#b279a2",
    "packed": "#79706e",
    "token": "#eeca3b",
    "prompt": "#d6a5c9",
    "scratch": "#9d755d",
    "dacts": "#ff9da6",
    "acts": "#f2a541",
}


def _rows(layout: Layout) -> list[tuple[str, str, str, int]]:
    """(name, shape in words, shape, bytes) of every tensor."""
    return [(p.row.name, p.row.label(), " x ".join(map(str, p.shape)), 4 * p.floats) for p in layout]


def as_text(layouts: dict[str, Layout]) -> str:
    """A line per section and tensor: offset in the section, size, share of the whole."""
    whole = 4 * sum(layout.floats for layout in layouts.values())
    lines = [f"{'section':<10}{'tensor':<13}{'axes':<25}{'shape':<22}{'size':>10}{'share':>8}"]
    for section, layout in layouts.items():
        lines.append(f"{section:<70}{human(4 * layout.floats):>10}{400 * layout.floats / whole:>7.1f}%")
        if section in ("grads", "m", "v"):
            lines.append(f"{'':<10}as params")
            continue
        for name, label, shape, size in _rows(layout):
            lines.append(f"{'':<10}{name:<13}{label:<25}{shape:<22}{human(size):>10}{100 * size / whole:>7.1f}%")
    lines.append(f"{'all':<70}{human(whole):>10}{'100.0%':>8}")
    return "\n".join(lines)


def as_svg(layouts: dict[str, Layout], title: str) -> str:
    """The arena as bars: all sections to scale on top, then a bar for each section that has tensors of its own."""
    width, bar, gap, left = 1000, 44, 46, 90
    own = {name: layout for name, layout in layouts.items() if name not in ("grads", "m", "v", "scratch")}
    height = 60 + (len(own) + 1) * (bar + gap)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 20} {height}" font-family="sans-serif" font-size="13">',
        f'<rect width="100%" height="100%" fill="white"/><text x="10" y="24" font-size="14">{escape(title)}</text>',
    ]
    whole = [(name, 4 * layout.floats, COLOURS[name]) for name, layout in layouts.items()]
    bars = [("arena", whole)] + [
        (name, [(row, size, COLOURS[name]) for row, _, _, size in _rows(layout)]) for name, layout in own.items()
    ]
    for index, (name, pieces) in enumerate(bars):
        y, total, x = 44 + index * (bar + gap), sum(size for _, size, _ in pieces), float(left)
        parts.append(f'<text x="{left - 10}" y="{y + 20}" text-anchor="end" font-weight="bold">{name}</text>')
        parts.append(f'<text x="{left - 10}" y="{y + 37}" text-anchor="end" fill="#555">{human(total)}</text>')
        for number, (label, size, colour) in enumerate(pieces):
            w = width * size / total
            words = f"{label}: {human(size)}, {100 * size / total:.1f}%"
            parts.append(
                f'<rect x="{x:.2f}" y="{y}" width="{w:.2f}" height="{bar}" fill="{colour}" fill-opacity="{0.95 - 0.3 * (number % 2)}" '
                f'stroke="white" stroke-width="0.7"><title>{escape(words)}</title></rect>'
            )
            if w > 8 * len(label) + 4:
                parts.append(
                    f'<text x="{x + w / 2:.1f}" y="{y + 27}" text-anchor="middle" fill="#111">{escape(label)}</text>'
                )
            if w > 58:
                parts.append(
                    f'<text x="{x + w / 2:.1f}" y="{y + bar + 15}" text-anchor="middle" fill="#555" font-size="11">{human(size)}</text>'
                )
            x += w
    return "\n".join(parts + ["</svg>\n"])
