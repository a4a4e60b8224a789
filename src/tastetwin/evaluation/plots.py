"""Small inline SVG drawings for the report: no script, no font, no request; colours come from the page's CSS variables.

Bars carry no text, so that they may be stretched; charts with text keep their proportions.
"""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup, escape

from tastetwin.analysis.chance import Level
from tastetwin.evaluation.metrics import Interval

WIDTH, HEIGHT = 400.0, 250.0
LEFT, RIGHT, TOP, BOTTOM = 40.0, 20.0, 12.0, 34.0


def interval_bar(interval: Interval, most: float, colour: str) -> Markup:
    """A horizontal bar from 0 to the value with a whisker for the interval; ``most`` is the right edge."""
    scale = 100 / max(most, 1e-9)
    value, low, high = (max(0.0, min(100.0, x * scale)) for x in (interval.value, interval.low, interval.high))
    return Markup(  # nosec B704  # numbers, and names of colours
        '<svg class="bar" viewBox="0 0 100 14" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect x="0" y="2" width="{value:.2f}" height="10" rx=".6" fill="var(--{colour})"/>'
        f'<path d="M{low:.2f} 7H{high:.2f}M{low:.2f} 4V10M{high:.2f} 4V10" class="whisker"/></svg>'
    )


def share_bar(share: float, colour: str) -> Markup:
    """A horizontal bar filled up to ``share`` of its length."""
    width = 100 * max(0.0, min(1.0, share))
    return Markup(  # nosec B704  # numbers, and names of colours
        '<svg class="bar thin" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        '<rect width="100" height="8" fill="var(--track)"/>'
        f'<rect width="{width:.2f}" height="8" fill="var(--{colour})"/></svg>'
    )


def lorenz_chart(
    shares: Sequence[float],
    x_label: str = "users, least shown first",
    title: str = "Lorenz curve of exposure",
    guide: str = "everyone shown alike",
) -> Markup:
    """The Lorenz curve of exposure: cumulative share of slots over users, the least shown first."""
    n = max(1, len(shares) - 1)
    points = [(_x(i / n), _y(share)) for i, share in enumerate(shares)]
    curve = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    corner = f"{_x(1):.1f},{_y(0):.1f}"
    body = (
        f'<polygon points="{_x(0):.1f},{_y(0):.1f} {curve} {corner}" fill="var(--model)" opacity=".16"/>'
        f'<polyline points="{curve}" class="line" stroke="var(--model)"/>'
        f'<line x1="{_x(0)}" y1="{_y(0)}" x2="{_x(1)}" y2="{_y(1)}" class="guide"/>'
        f'<text x="{_x(0.47):.0f}" y="{_y(0.56):.0f}" class="note" text-anchor="end">{escape(guide)}</text>'
    )
    return _chart(body, _percent_ticks(), _percent_ticks(), x_label, title)


def score_chart(edges: Sequence[float], twins: Sequence[float], strangers: Sequence[float]) -> Markup:
    """Two overlaid histograms: cosines of twins in the model's colour, those of strangers in the other."""
    low, high = edges[0], edges[-1]
    most = max([*twins, *strangers, 1e-9])
    body = _area(strangers, most, "other") + _area(twins, most, "model")
    ticks = [(i / 4, f"{low + (high - low) * i / 4:.2f}") for i in range(5)]
    return _chart(body, ticks, [], "cosine of two taste vectors", "Scores of twins and strangers")


def reliability_chart(
    levels: Sequence[Level],
    x_label: str = "told chance that the twin has the next place",
    title: str = "Told and observed chances",
) -> Markup:
    """Observed over told chance, a point a level; on the diagonal what is told is true."""
    most = max(max(level.told, level.high) for level in levels) * 1.05
    points = "".join(
        f'<path d="M{x:.1f} {_y(level.low / most):.1f}V{_y(level.high / most):.1f}" class="whisker"/>'
        f'<circle cx="{x:.1f}" cy="{_y(level.observed / most):.1f}" r="3.5" fill="var(--model)"/>'
        for level in levels
        for x in [_x(level.told / most)]
    )
    body = f'<line x1="{_x(0)}" y1="{_y(0)}" x2="{_x(1)}" y2="{_y(1)}" class="guide"/>{points}'
    ticks = [(i / 4, f"{25 * i * most:.2g} %") for i in range(5)]
    return _chart(body, ticks, ticks, x_label, title)


def _area(shares: Sequence[float], most: float, colour: str) -> str:
    n = len(shares)
    steps = [f"{_x(x / n):.1f},{_y(share / most * 0.94):.1f}" for i, share in enumerate(shares) for x in (i, i + 1)]
    outline = " ".join(steps)
    closed = f"{_x(0):.1f},{_y(0):.1f} {outline} {_x(1):.1f},{_y(0):.1f}"
    return (
        f'<polygon points="{closed}" fill="var(--{colour})" opacity=".3"/>'
        f'<polyline points="{outline}" class="line thin" stroke="var(--{colour})"/>'
    )


def _chart(
    body: str, x_ticks: Sequence[tuple[float, str]], y_ticks: Sequence[tuple[float, str]], x_label: str, title: str
) -> Markup:
    across = "".join(
        f'<text x="{_x(at):.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{label}</text>'
        for at, label in x_ticks
    )
    up = "".join(
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{_y(at):.1f}" y2="{_y(at):.1f}" class="grid"/>'
        f'<text x="{LEFT - 6}" y="{_y(at) + 4:.1f}" text-anchor="end">{label}</text>'
        for at, label in y_ticks
    )
    axis = f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{_y(0)}" y2="{_y(0)}" class="axis"/>'
    label = f'<text x="{_x(0.5):.0f}" y="{HEIGHT - 3}" text-anchor="middle" class="note">{escape(x_label)}</text>'
    head = f'<svg class="chart" viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" role="img" aria-label="{escape(title)}">'
    return Markup(f"{head}{up}{body}{axis}{across}{label}</svg>")  # nosec B704  # numbers, and what is escaped above


def _percent_ticks() -> list[tuple[float, str]]:
    return [(i / 4, f"{25 * i} %") for i in range(5)]


def _x(at: float) -> float:
    return LEFT + at * (WIDTH - LEFT - RIGHT)


def _y(at: float) -> float:
    return HEIGHT - BOTTOM - at * (HEIGHT - TOP - BOTTOM)
