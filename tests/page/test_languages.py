"""The texts: two languages that say the same, and nothing said that nobody asks for."""

from __future__ import annotations

import re
from pathlib import Path
from string import Formatter
from typing import Final

import pytest

from tastetwin import page
from tastetwin.page.card import text_of
from tastetwin.page.languages import TEXTS, language_of
from tests.evaluation.test_drift import moved

FOLDER: Final = Path(page.__file__).parent


def blanks(text: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(text) if name}


def test_both_languages_have_the_same_texts_with_the_same_blanks() -> None:
    """A missing one would be an error page, and only for readers of one language."""
    assert set(TEXTS) == {"en", "ko"}
    assert list(TEXTS["en"]) == list(TEXTS["ko"])
    for key, text in TEXTS["en"].items():
        assert blanks(text) == blanks(TEXTS["ko"][key]), key
        assert text and TEXTS["ko"][key]


def test_every_text_is_used_and_every_text_used_is_there() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in [*FOLDER.glob("*.py"), *FOLDER.rglob("*.html")])
    named = set(re.findall(r'\bt\("(\w+)"[,)]', source))
    assert named <= set(TEXTS["en"])
    made = tuple(re.findall(r't\("(\w+_)" \+', source))
    assert made
    left = {key for key in TEXTS["en"] if key not in named and not key.startswith(made)}
    assert {key for key in left if f'"{key}"' not in source} == set()


def test_korean_texts_are_korean() -> None:
    """A text that was forgotten in translation would be the English one."""
    same = {key for key, text in TEXTS["ko"].items() if not re.search("[가-힣]", text)}
    assert same <= {"pair_title", "group_other"}


def test_every_figure_of_a_day_beside_another_is_said_in_both_languages() -> None:
    """On every day but the first, a third of the health card would be in English for readers of Korean."""
    assert [each.name for each in moved() if text_of(each) is None] == []


@pytest.mark.parametrize(
    ("accepted", "language"),
    [
        ("", "en"),
        ("ko", "ko"),
        ("ko-KR,ko;q=0.9,en-US;q=0.8", "ko"),
        ("en-US,en;q=0.9,ko;q=0.8", "en"),
        ("fr, ko;q=0.5, en;q=0.4", "ko"),
        ("en;q=0.1, ko;q=0.9", "ko"),
        ("de", "en"),
        ("ko;q=x, en", "en"),
        (",,;q=1,*", "en"),
    ],
)
def test_the_language_is_the_one_liked_best_of_those_there_are(accepted: str, language: str) -> None:
    assert language_of(accepted) == language
