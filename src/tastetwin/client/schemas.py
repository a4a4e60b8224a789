"""What the gateway's API takes and gives, as models: they check requests, and the API's description is made of them."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, model_validator

from tastetwin.analysis.sentences import Language

MAX_ID = 1_000
MAX_EXCLUDED = 2_000
MAX_SKIP = 1_000
MAX_K = 1_000
"""The highest that gateway.max_k may be."""
MAX_DEPTH: Final = 8
"""How deep an event's fields may nest."""
TIMEOUT_HEADER: Final = "tastetwin-timeout-ms"
"""How long the caller will wait: nothing needs to be done for them after that."""

UserId = Annotated[str, Field(min_length=1, max_length=MAX_ID, description="the source's id of a user")]


def _shallow(event: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """What one tier takes, the next has to take with what is put around it."""
    level: list[Any] = [event]
    for _ in range(MAX_DEPTH):
        inner = [each for outer in level for each in (outer.values() if isinstance(outer, dict) else outer)]
        level = [each for each in inner if isinstance(each, dict | list)]
    if level:
        raise ValueError(f"fields nest at most {MAX_DEPTH} deep")
    return event


Event = Annotated[
    dict[str, JsonValue],
    AfterValidator(_shallow),
    Field(description="fields as in the source, see docs/reference/tables.md"),
]

_LIKE: Final = {"like_contentsid": "p3", "like_displayid": "restaurant", "like_regymdt": "2026-11-21T09:30:00Z"}
_HISTORY: Final[dict[str, Any]] = {
    "reviews": [
        {"review_id": "r1", "review_place_id": "p17", "review_rating": 4.5, "review_visited_date": "2026-11-20"}
    ],
    "likes": [_LIKE],
}


def example(*bodies: dict[str, Any]) -> ConfigDict:
    """For a model's ``model_config``: what the API's description shows."""
    return ConfigDict(json_schema_extra={"examples": list(bodies)})


class Model(BaseModel):
    """Takes no field that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class History(Model):
    """A user's favors, in any order."""

    model_config = example(_HISTORY)

    reviews: list[Event] = []
    likes: list[Event] = []


class EmbedRequest(Model):
    """Histories to encode."""

    model_config = example({"items": [_HISTORY]})

    items: list[History] = Field(min_length=1, description="at most gateway.max_batch")


class Wanted(Model):
    """How many twins, and how they are told."""

    k: int = Field(10, ge=1, le=MAX_K, description="how many; at most gateway.max_k")
    skip: int = Field(0, ge=0, le=MAX_SKIP, description="leave out so many of the first, for paging")
    language: Language = Field("en", description="of the evidence")
    evidence: bool = Field(True, description="whether to say what is shared")
    exclude: list[UserId] = Field([], max_length=MAX_EXCLUDED, description="users not to be shown: dismissed ones, say")


class TwinsRequest(Wanted):
    """Whose twins: a user's, by id, or those of a history sent along; one of the two."""

    model_config = example({"user": "u42", "k": 5}, {**_HISTORY, "k": 5})

    user: UserId | None = None
    reviews: list[Event] = []
    likes: list[Event] = []
    viewer: UserId | None = Field(
        None, description="who will see the twins of a history: not themselves, whom they follow, or who blocked them"
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.user is None) == (not self.reviews and not self.likes):
            raise ValueError("either a user, or reviews and likes")
        return self


class TwinsBatchRequest(Wanted):
    """The twins of several users."""

    model_config = example({"users": ["u42", "u43"], "k": 5})

    users: list[UserId] = Field(min_length=1, description="at most gateway.max_batch")


class PairRequest(Model):
    """Two users."""

    model_config = example({"user": "u42", "other": "u7"})

    user: UserId
    other: UserId
    language: Language = "en"


class Favor(Model):
    """A review or a like."""

    model_config = example({"like": _LIKE})

    review: Event | None = None
    like: Event | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.review is None) == (self.like is None):
            raise ValueError("either a review or a like")
        return self


class FavorEvent(Favor):
    """Something a user did."""

    model_config = example({"user": "u42", "like": _LIKE})

    user: UserId


class FavorsRequest(Model):
    """Events, in the order in which they happened; the same event twice counts once."""

    model_config = example({"events": [{"user": "u42", "like": _LIKE}], "k": 5})

    events: list[FavorEvent] = Field(min_length=1, description="at most four times gateway.max_batch")
    k: int = Field(0, ge=0, le=MAX_K, description="how many twins of each user to answer; 0 = none")


class UserRequest(Model):
    """One user."""

    model_config = example({"user": "u42"})

    user: UserId


class Origin(BaseModel):
    """What an answer was made from."""

    model: str
    version: str = Field(description="run whose lists and people these are")
    bundle: str = Field(description="generation of the encoder")
    as_of: str = Field(description="logical date: events up to its end are in the run")


class Problem(BaseModel):
    """What is wrong, as everywhere in TasteTwin; see docs/reference/errors.md."""

    code: str
    place: str
    value: str
    rule: str
    fix: str


class Refusal(BaseModel):
    """The body of every answer that is no answer."""

    error: Problem
    request_id: str


class Evidence(BaseModel):
    """What two users share and enough others do too."""

    sentence: str
    places: list[str] = Field(description="place ids")
    categories: list[str]
    regions: list[str]


class Twin(BaseModel):
    """One of a list."""

    rank: int
    user: str
    score: float | None = Field(None, description="higher is closer; only with scope `score`")
    percentile: float | None = Field(None, description="per cent of random pairs that are no closer; scope `score`")
    chance: float | None = Field(None, description="that they have the place favored next; scope `score`")
    evidence: Evidence | None = None


Source = Literal["published", "fresh", "request"]


class Twins(BaseModel):
    """A list, closest first."""

    source: Source = Field(description="the run's own list; searched since favors came later; or for the history sent")
    stale: bool = Field(False, description="true where fresher favors could not be read by a model: the run's list")
    age_seconds: float | None = Field(None, description="of the run's list, since it was published; where stale")
    twins: list[Twin]


class TwinsAnswer(Origin, Twins):
    """The twins of one user."""


class TwinsItem(BaseModel):
    """Of one user of several: a list, or why there is none."""

    user: str
    answer: Twins | None = None
    error: Problem | None = None


class TwinsBatchAnswer(Origin):
    """In the order of the request."""

    items: list[TwinsItem]


class EmbedItem(BaseModel):
    """One history's vector, or why there is none."""

    vector: list[float] | None = Field(None, description="of unit length")
    places: int = Field(0, description="distinct places that the model knows")
    error: Problem | None = None


class EmbedAnswer(Origin):
    """In the order of the request."""

    items: list[EmbedItem]


class ExplainAnswer(Origin):
    """What two users share."""

    stale: bool = Field(False, description="true where the last favors of either could not be read by a model")
    evidence: Evidence


class Category(BaseModel):
    """A kind of place that one of the two favors more."""

    category: str
    ahead: float = Field(description="difference of the shares of both histories")


class CompareAnswer(ExplainAnswer):
    """What two users share, and what they do not."""

    score: float | None = None
    percentile: float | None = None
    more: list[Category] = Field(description="categories of which the first one's history holds a larger share")
    less: list[Category] = Field(description="of which the other one's does")


class FavorsItem(BaseModel):
    """What became of one user's events."""

    user: str
    taken: bool = Field(True, description="false: one of them was refused, and none of them counts")
    places: int = Field(0, description="distinct places of the user, as far as a model has read them")
    answer: Twins | None = Field(None, description="if twins were asked for")
    error: Problem | None = Field(None, description="why they were not taken; else why there is no list")


class FavorsAnswer(Origin):
    """One item a user, in the order of first appearance."""

    items: list[FavorsItem]


class OptOutAnswer(BaseModel):
    """The user is shown to nobody from now on."""

    user: str
    opted_out: bool = True


class VersionInfo(Origin):
    """One version that the gateway holds."""

    people: int
    dim: int
    weight: float


class ModelsAnswer(BaseModel):
    """What the gateway holds."""

    models: list[VersionInfo]
