"""What the app's API takes and gives. No score, rank of closeness or time of another user is in any answer."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

from tastetwin.analysis.sentences import Language
from tastetwin.client.schemas import Evidence, Model, UserId, example

MAX_PAGE: Final = 10
MAX_TOKEN_SECONDS: Final = 86_400


class TokenRequest(Model):
    """For whom, and for how long."""

    model_config = example({"user": "u42", "seconds": 3_600})

    user: UserId
    seconds: int = Field(3_600, ge=1, le=MAX_TOKEN_SECONDS)


class Token(Model):
    """To be sent as `authorization: Bearer TOKEN`."""

    token: str
    seconds: int = Field(description="that it opens anything")


class TwinsQuery(Model):
    """Which part of a list, and in which language."""

    page: Annotated[int, Field(ge=1, le=MAX_PAGE)] = 1
    language: Language = "en"


class Other(Model):
    """Another user."""

    model_config = example({"user": "u7"})

    user: UserId


class Fellow(Model):
    """Somebody who shares my taste."""

    user: str
    evidence: Evidence | None = Field(description="what we share and enough others do too")


class MyTwins(Model):
    """Closest first. Empty for whoever has too few favors, opted out, or is not known: it does not say which."""

    people: list[Fellow]
    page: int
    next_page: int | None = Field(description="None: that was the last")
    stale: bool = Field(description="true where what I did last is not yet part of it")


class PlacePeople(Model):
    """Whose taste fits a place, closest first. Empty for a place that is not known, too."""

    people: list[Other]
    stale: bool


class Users(Model):
    """The newest first."""

    users: list[str]


class Done(Model):
    """It is so now, whether or not it was before."""

    done: bool = True
