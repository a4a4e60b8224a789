"""Evidence in words: one plain sentence, in English and Korean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, get_args

from tastetwin.errors import UsageError

Language = Literal["en", "ko"]
LANGUAGES: Final[tuple[Language, ...]] = get_args(Language)

NOTHING: Final[dict[Language, str]] = {
    "en": "Nothing that both favor is known to enough people to be named.",
    "ko": "두 사람이 함께 좋아하는 곳 가운데 이름을 밝힐 만큼 널리 알려진 곳은 없습니다.",
}
"""Said both where nothing is shared and where what is shared is rare: the difference would betray a visit."""

_FIRST_SYLLABLE, _LAST_SYLLABLE, _FINALS = 0xAC00, 0xD7A3, 28


def language_of(text: str) -> Language:
    """A language by its ISO 639-1 code.

    Raises:
        UsageError: LANGUAGE.
    """
    for language in LANGUAGES:
        if text == language:
            return language
    raise UsageError("LANGUAGE", place="language", value=text, rule=f"one of {', '.join(LANGUAGES)}", fix="name one")


def sentence(language: Language, places: Sequence[str], categories: Sequence[str], regions: Sequence[str]) -> str:
    """What two people share, the heaviest first: names of places, else codes of categories and the first region."""
    if not (places or categories or regions):
        return NOTHING[language]
    return (_korean if language == "ko" else _english)(places, categories, regions[0] if regions else "")


def _english(places: Sequence[str], categories: Sequence[str], region: str) -> str:
    if places:
        return f"Both favor {_and(places)}."
    if categories:
        word = "category" if len(categories) == 1 else "categories"
        # Not "of this category in this area": few people, or nobody, may have been to such a place.
        also = f", and area {region}" if region else ""
        return f"Both favor places of {word} {_and(categories)}{also}."
    return f"Both favor places in area {region}."


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _korean(places: Sequence[str], categories: Sequence[str], region: str) -> str:
    if places:
        return f"두 사람 모두 {_object(', '.join(places))} 좋아합니다."
    if categories:
        also = f"와 {region} 지역을" if region else "를"
        return f"두 사람 모두 {', '.join(categories)} 분류의 장소{also} 좋아합니다."
    return f"두 사람 모두 {region} 지역의 장소를 좋아합니다."


def _object(words: str) -> str:
    """With the object particle that the last syllable asks for (을 after a final consonant, else 를)."""
    last = ord(words[-1])
    if not _FIRST_SYLLABLE <= last <= _LAST_SYLLABLE:
        return f"{words}을(를)"
    return f"{words}{'를' if (last - _FIRST_SYLLABLE) % _FINALS == 0 else '을'}"
