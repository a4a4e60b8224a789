"""Inline SVG of the pages: places on a plain map, the taste map. No script; colours come from classes in page.css."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from markupsafe import Markup, escape

from tastetwin.analysis.index import Floats, Ints
from tastetwin.page.atlas import Atlas

WIDTH: Final = 640.0
MARGIN: Final = 28.0
MIN_SPAN_KM: Final = 0.5
_KM_PER_DEGREE: Final = 111.195
"""Of a great circle, on a sphere of 6,371 km (IUGG mean radius)."""
COLUMNS: Final = 64
"""Hexagons across the taste map."""
SHADES: Final = 4


@dataclass(frozen=True)
class Point:
    """A place on a map; ``kind`` is a CSS class that also decides the mark's shape."""

    lat: float
    lon: float
    kind: str
    label: str


def place_map(points: Sequence[Point], title: str, summary: str, unit: str = "km") -> Markup:
    """Places in true proportion (equirectangular about their middle) with a scale bar; "" without a point."""
    if not points:
        return Markup("")
    lats, lons = [p.lat for p in points], [p.lon for p in points]
    middle = (min(lats) + max(lats)) / 2
    squeeze = max(math.cos(math.radians(middle)), 0.01)
    across = max((max(lons) - min(lons)) * squeeze * _KM_PER_DEGREE, MIN_SPAN_KM)
    up = max((max(lats) - min(lats)) * _KM_PER_DEGREE, MIN_SPAN_KM)
    scale = (WIDTH - 2 * MARGIN) / max(across, up / 0.75)
    height = max(up * scale, 0.3 * WIDTH) + 2 * MARGIN + 16
    left = (WIDTH - (max(lons) - min(lons)) * squeeze * _KM_PER_DEGREE * scale) / 2
    top = (height - 16 - (max(lats) - min(lats)) * _KM_PER_DEGREE * scale) / 2
    marks = []
    for p in points:
        x = left + (p.lon - min(lons)) * squeeze * _KM_PER_DEGREE * scale
        y = top + (max(lats) - p.lat) * _KM_PER_DEGREE * scale
        marks.append(f'<g class="mark {p.kind}"><title>{escape(p.label)}</title>{_shape(p.kind, x, y)}</g>')
    bar = _nice(0.3 * WIDTH / scale)
    length, base = bar * scale, height - 14
    ruler = (
        f'<path class="ruler" d="M{MARGIN} {base - 5:.1f}V{base:.1f}H{MARGIN + length:.1f}V{base - 5:.1f}"/>'
        f'<text x="{MARGIN + length + 8:.1f}" y="{base:.1f}">{bar:g} {escape(unit)}</text>'
    )
    return _svg("placemap", "img", height, title, summary, "".join(marks) + ruler)


def _shape(kind: str, x: float, y: float) -> str:
    if kind == "other":
        return f'<rect x="{x - 4.5:.1f}" y="{y - 4.5:.1f}" width="9" height="9"/>'
    if kind == "both":
        return f'<path d="M{x:.1f} {y - 8:.1f}l8 8l-8 8l-8 -8z"/>'
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5"/>'


def _nice(most: float) -> float:
    """The largest of 1, 2, 5 x 10^n up to ``most``."""
    power = 10 ** math.floor(math.log10(most))
    return float(max(step for step in (power, 2 * power, 5 * power) if step <= most))


class Drawing:
    """A taste map in hexagons: the colour is the most frequent neighbourhood, the shade how many users are there."""

    def __init__(self, atlas: Atlas) -> None:
        self._atlas = atlas
        self._low, high = atlas.points.min(axis=0), atlas.points.max(axis=0)
        span = np.maximum(high - self._low, 1e-6)
        self._height = min(float(span[1] / span[0]), 1.0) * (WIDTH - 2 * MARGIN) + 2 * MARGIN
        self._scale = np.array([WIDTH - 2 * MARGIN, self._height - 2 * MARGIN]) / span
        xy = self._on_paper(atlas.points)
        self._hexagons = _hexagons(xy, atlas.cells, len(atlas.neighbourhoods))
        self._labels = [self._on_paper(np.array(each.centre)).tolist() for each in atlas.neighbourhoods]

    def _on_paper(self, points: Floats) -> Floats:
        across, up = np.moveaxis((points - self._low) * self._scale, -1, 0)
        return np.stack([MARGIN + across, self._height - MARGIN - up], axis=-1)

    def svg(self, names: Sequence[str], title: str, summary: str, user: str | None = None) -> Markup:
        """The map.

        ``names`` are those of the neighbourhoods, in their order; title and summary are for who cannot see it; ``user``
        is marked.
        """
        body = self._hexagons
        for number, (x, y) in enumerate(self._labels):
            body += _label(number, x, y, names[number])
        if user is not None:
            x, y = self._on_paper(np.array(self._atlas.of(user)[1])).tolist()
            body += f'<g class="you"><title>{escape(user)}</title><circle cx="{x:.1f}" cy="{y:.1f}" r="9"/></g>'
        return _svg("tastemap", "group", self._height, title, summary, body)


def _label(number: int, x: float, y: float, name: str) -> str:
    return (
        f'<a href="#n{number + 1}" class="place c{number}"><title>{number + 1}. {escape(name)}</title>'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="12"/>'
        f'<text x="{x:.1f}" y="{y + 4.5:.1f}" text-anchor="middle">{number + 1}</text></a>'
    )


def _hexagons(xy: Floats, cells: Ints, count: int) -> str:
    """One path for each neighbourhood and shade, so that a map of any number of users stays small."""
    wide = (WIDTH - 2 * MARGIN) / COLUMNS
    tall = wide * math.sqrt(3) / 2
    row = np.rint(xy[:, 1] / tall).astype(np.int64)
    column = np.rint(xy[:, 0] / wide - (row % 2) / 2).astype(np.int64)
    key, inverse = np.unique(row * 4096 + column, return_inverse=True)
    tally = np.bincount(inverse * count + cells, minlength=len(key) * count).reshape(len(key), count)
    users = tally.sum(axis=1)
    shade = np.minimum((np.log1p(users) / np.log1p(users.max()) * SHADES).astype(np.int64), SHADES - 1)
    rows, columns = key // 4096, key % 4096
    xs, ys = (columns + (rows % 2) / 2) * wide, rows * tall
    r = wide / math.sqrt(3) * 0.94
    side, half = r * math.sqrt(3) / 2, r / 2
    corners = f"l{side:.1f} {half:.1f}v{r:.1f}l{-side:.1f} {half:.1f}l{-side:.1f} {-half:.1f}v{-r:.1f}z"
    winner, paths = tally.argmax(axis=1), []
    for number in range(count):
        for level in range(SHADES):
            at = np.flatnonzero((winner == number) & (shade == level))
            if len(at):
                d = "".join(f"M{xs[i]:.1f} {ys[i] - r:.1f}{corners}" for i in at)
                paths.append(f'<path class="c{number} s{level}" d="{d}"/>')
    return "".join(paths)


def _svg(name: str, role: str, height: float, title: str, summary: str, body: str) -> Markup:
    return Markup(  # nosec B704  # escaped here, or where the body is drawn
        f'<svg class="{name}" viewBox="0 0 {WIDTH:.0f} {height:.0f}" role="{role}" aria-labelledby="{name}-t {name}-d">'
        f'<title id="{name}-t">{escape(title)}</title><desc id="{name}-d">{escape(summary)}</desc>{body}</svg>'
    )
