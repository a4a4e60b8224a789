"""Maps in true proportion, with a scale that can be read off, of any number of users in little HTML."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from tastetwin.page.atlas import Atlas, Neighbourhood
from tastetwin.page.charts import COLUMNS, SHADES, Drawing, Point, place_map


def centres(svg: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', svg)]


def kilometre(svg: str) -> float:
    """How long a kilometre is on the map, by its scale bar."""
    start, end = map(float, re.findall(r'd="M([\d.]+) [\d.]+V[\d.]+H([\d.]+)V', svg)[0])
    return (end - start) / float(re.findall(r">([\d.e-]+) km<", svg)[0])


@pytest.mark.parametrize("lat", [0.0, 37.5, -60.0])
def test_a_kilometre_is_as_long_north_as_east_and_as_the_scale_says(lat: float) -> None:
    """Seoul City Hall and a point 10 km north and 10 km east of it, anywhere."""
    degree = 111.195
    north = Point(lat + 10 / degree, 127.0, "one", "")
    east = Point(lat + 5 / degree, 127.0 + 10 / degree / np.cos(np.radians(lat + 5 / degree)), "one", "")
    svg = str(place_map([Point(lat, 127.0, "one", ""), north, east], "t", "s"))
    origin, up, right = centres(svg)
    unit = kilometre(svg)
    assert origin[1] - up[1] == pytest.approx(10 * unit, abs=0.3)
    assert right[0] - origin[0] == pytest.approx(10 * unit, abs=0.3)


@pytest.mark.parametrize("spread", [0.0, 1e-6, 0.01, 1.0, 120.0])
def test_all_places_are_on_the_map_however_far_apart(spread: float) -> None:
    points = [Point(10 + spread * a / 2, 20 + spread * b, "one", "x") for a in (0, 1) for b in (0, 1)]
    svg = str(place_map(points, "t", "s"))
    width, height = map(float, re.findall(r'viewBox="0 0 (\d+) (\d+)"', svg)[0])
    assert len(centres(svg)) == 4
    assert all(0 < x < width and 0 < y < height for x, y in centres(svg))


def test_a_map_without_places_is_nothing_and_names_are_text() -> None:
    assert place_map([], "t", "s") == ""
    svg = str(place_map([Point(1, 1, "both", '<b>&"x')], "<t>", "</desc>"))
    ElementTree.fromstring(svg)
    assert "<b>" not in svg and "&lt;b&gt;&amp;&#34;x" in svg


def atlas(users: int) -> Atlas:
    random = np.random.default_rng(1)
    points = random.standard_normal((users, 2)).astype(np.float32)
    cells = (points[:, 0] > 0).astype(np.int64)
    ids = np.array([f"{at:06d}" for at in range(users)], object)
    near = [Neighbourhood(int((cells == c).sum()), (c - 0.5, 0.0), (), (), (), ()) for c in (0, 1)]
    return Atlas(ids, points, cells, tuple(near))


def test_the_taste_map_stays_small_and_colours_places_by_who_is_there() -> None:
    drawing = Drawing(atlas(50_000))
    svg = str(drawing.svg(["a", "<b>"], "t", "s"))
    ElementTree.fromstring(svg)
    assert len(svg) < 150_000
    paths = re.findall(r'<path class="c(\d) s(\d)" d="([^"]*)"', svg)
    assert len(paths) <= 2 * SHADES
    left = [float(x) for cell, _, d in paths for x in re.findall(r"M([\d.]+)", d) if cell == "0"]
    right = [float(x) for cell, _, d in paths for x in re.findall(r"M([\d.]+)", d) if cell == "1"]
    assert max(left) <= min(right) + 2 * 640 / COLUMNS


def test_a_user_is_marked_where_they_are() -> None:
    drawing = Drawing(atlas(100))
    plain, marked = (str(drawing.svg(["a", "b"], "t", "s", user)) for user in (None, "000003"))
    assert 'class="you"' not in plain and "<title>000003</title>" in marked
