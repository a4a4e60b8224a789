"""What is said about two users, and what is never said."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tastetwin.analysis.evidence import EvidenceRules, Explainer, Visitors, count_visitors
from tastetwin.analysis.sentences import LANGUAGES, NOTHING, Language, language_of, sentence
from tastetwin.errors import UsageError
from tastetwin.features.histories import Histories, Vocabulary

NOODLES, CAFE, CLINIC = 100, 200, 300


def vocabulary() -> Vocabulary:
    """Rows: 2 a (noodles, r1), 3 b (cafe, r1), 4 c (noodles + cafe, r2), 5 d (clinic, r2), 6 e (none), 7 a group."""
    categories = [[], [], [0], [1], [0, 1], [2], [], [1]]
    return Vocabulary(
        np.array(["", "", "a", "b", "c", "d", "e", "~200/r1"], dtype=object),
        np.array([False] * 7 + [True]),
        np.concatenate([[0], np.cumsum([len(c) for c in categories])]).astype(np.int64),
        np.array([c for row in categories for c in row], np.int32),
        np.array([-1, -1, 0, 0, 1, 1, -1, 0], np.int32),
        np.array([NOODLES, CAFE, CLINIC]),
        np.array(["r1", "r2"], dtype=object),
        np.full((8, 2), np.nan, np.float32),
    )


def explainer(places: dict[int, int], groups: int = 1000, rules: EvidenceRules | None = None) -> Explainer:
    counts = np.zeros(8, np.int64)
    for row, count in places.items():
        counts[row] = count
    visitors = Visitors(10_000, counts, np.full(3, groups), np.full(2, groups))
    return Explainer(vocabulary(), visitors, rules, names={"a": "Noodle House"})


def rows(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def slowly(explain: Explainer, mine: np.ndarray, theirs: np.ndarray) -> list[list[tuple[str, float]]]:
    """Keys and weights of what two users share, array by array, as the definition reads."""
    vocabulary, visitors = explain._vocabulary, explain._visitors
    places_ok, categories_ok, regions_ok = explain.may_name()

    def shares(keys: np.ndarray, size: int) -> np.ndarray:
        counts = np.bincount(keys, minlength=size).astype(np.float64)
        return np.asarray(counts / max(counts.sum(), 1.0))

    def categories(rows: np.ndarray) -> np.ndarray:
        parts = [vocabulary.categories[slice(*vocabulary.category_offsets[row : row + 2])] for row in rows]
        return shares(np.concatenate([np.empty(0, np.int32), *parts]), len(vocabulary.category_codes))

    def regions(rows: np.ndarray) -> np.ndarray:
        known = vocabulary.regions[rows]
        return shares(known[known >= 0], len(vocabulary.region_codes))

    def heaviest(keys: np.ndarray, overlap: np.ndarray, ok: np.ndarray, counts: np.ndarray) -> list[tuple[str, float]]:
        overlap = np.where(ok, overlap, 0)
        weights = overlap * np.log(visitors.n_users / np.maximum(counts, 1))
        order = [at for at in np.argsort(-weights, kind="stable") if overlap[at] > 0][:3]
        return [(str(keys[at]), float(weights[at])) for at in order]

    both = np.zeros(vocabulary.n_rows)
    both[np.intersect1d(mine, theirs)] = 1
    return [
        heaviest(vocabulary.place_ids, both, places_ok, visitors.places),
        heaviest(
            vocabulary.category_codes,
            np.minimum(categories(mine), categories(theirs)),
            categories_ok,
            visitors.categories,
        ),
        heaviest(vocabulary.region_codes, np.minimum(regions(mine), regions(theirs)), regions_ok, visitors.regions),
    ]


@given(st.data())
def test_said_is_what_the_definition_says(data: st.DataObject) -> None:
    """Plain loops over few places stand in for arrays: same things, same weights, same order, ties included."""
    n_rows, n_categories, n_regions = 30, 6, 4
    rng = np.random.default_rng(data.draw(st.integers(0, 1_000)))
    lists = [rng.choice(n_categories, rng.integers(0, 4), replace=False) for _ in range(n_rows)]
    drawn = Vocabulary(
        np.array([f"p{row}" for row in range(n_rows)], dtype=object),
        rng.random(n_rows) < 0.2,
        np.concatenate([[0], np.cumsum([len(each) for each in lists])]).astype(np.int64),
        np.concatenate(lists).astype(np.int32),
        rng.integers(-1, n_regions, n_rows).astype(np.int32),
        np.arange(n_categories) * 100,
        np.array([f"r{at}" for at in range(n_regions)], dtype=object),
        np.full((n_rows, 2), np.nan, np.float32),
    )
    counts = [rng.choice([5, 10, 20, 1000], size) for size in (n_rows, n_categories, n_regions)]
    rules = EvidenceRules(sensitive_categories=frozenset({100}))
    explain = Explainer(drawn, Visitors(1_000, *counts), rules)
    row = st.lists(st.integers(2, n_rows - 1), unique=True, max_size=20)
    mine, theirs = (np.array(data.draw(row), np.int32) for _ in range(2))
    found = explain.explain(mine, theirs)
    said = [[(each.key, each.weight) for each in kind] for kind in (found.places, found.categories, found.regions)]
    assert said == slowly(explain, mine, theirs)


def test_shared_places_are_listed_rarest_first() -> None:
    """A place that 20 favor says more than one that 2,000 do; weight is log(users / visitors)."""
    found = explainer({2: 2000, 3: 20, 4: 500}).explain(rows(2, 3, 4), rows(4, 3, 2))
    assert [place.key for place in found.places] == ["b", "c", "a"]
    assert found.places[0].weight == pytest.approx(np.log(10_000 / 20))
    assert found.sentence == "Both favor b, c and Noodle House."


def test_a_place_with_fewer_than_ten_visitors_is_never_named() -> None:
    """Naming it would reveal a visit; at ten it may be."""
    assert explainer({2: 9, 3: 9}).explain(rows(2, 3), rows(2, 3)).places == ()
    assert [p.key for p in explainer({2: 10, 3: 9}).explain(rows(2, 3), rows(2, 3)).places] == ["a"]


def test_without_places_to_name_categories_and_area_are() -> None:
    """Everywhere below ten visitors: fall back."""
    found = explainer({2: 1, 3: 2}).explain(rows(2), rows(2))
    assert found.places == ()
    assert found.sentence == f"Both favor places of category {NOODLES}, and area r1."


def test_categories_weigh_the_overlap_of_shares_by_rarity() -> None:
    """Mine: noodles 1/2, cafe 1/2; theirs: noodles 1, so the overlap is 1/2 of noodles and nothing else."""
    found = explainer({}).explain(rows(2, 3), rows(2))
    assert [c.key for c in found.categories] == [str(NOODLES)]
    assert found.categories[0].weight == pytest.approx(0.5 * np.log(10))


def test_rare_categories_and_areas_are_not_named_either() -> None:
    """With nine visitors in the whole category or area the fallback would betray them just as well."""
    found = explainer({2: 9}, groups=9).explain(rows(2), rows(2))
    assert (found.places, found.categories, found.regions, found.sentence) == ((), (), (), NOTHING["en"])


def test_sensitive_categories_and_their_places_are_never_named() -> None:
    """However many favor the clinic."""
    rules = EvidenceRules(sensitive_categories=frozenset({CLINIC}))
    found = explainer({5: 5000}, rules=rules).explain(rows(5), rows(5))
    assert found.places == () and found.categories == ()
    assert found.sentence == "Both favor places in area r2."


def test_nothing_shared_is_said_plainly() -> None:
    """Twins by the model alone; a fallback group is not a place to name."""
    assert explainer({2: 100, 5: 100}).explain(rows(2), rows(5)).sentence == NOTHING["en"]
    assert explainer({7: 100}).explain(rows(7), rows(7)).places == ()
    assert explainer({}).explain(rows(), rows()).sentence == NOTHING["en"]


def test_no_more_than_asked_for_is_named() -> None:
    """Lists stay short."""
    found = explainer({2: 50, 3: 50, 4: 50}, rules=EvidenceRules(most=2)).explain(rows(2, 3, 4), rows(2, 3, 4))
    assert [place.key for place in found.places] == ["a", "b"]


def test_visitors_are_distinct_users() -> None:
    """Two noodle places of one user are one visitor of noodles, and a place without a region is in none. Users:
    {a, c}, {c}, {a}, {e}, {}."""
    known = Histories(
        np.array(["1", "2", "3", "4", "5"], dtype=object),
        np.array([0, 2, 3, 4, 5, 5]),
        np.array([2, 4, 4, 2, 6], np.int32),
        np.ones(5, np.float32),
        np.ones(5, np.float32),
        np.zeros(5, np.int32),
    )
    visitors = count_visitors(known, vocabulary())
    assert visitors.n_users == 5
    assert visitors.places.tolist() == [0, 0, 2, 0, 2, 0, 1, 0]
    assert visitors.categories.tolist() == [3, 2, 0]
    assert visitors.regions.tolist() == [2, 2]


# -- in words ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("language", "given", "said"),
    [
        ("en", (["A"], ["1"], ["r"]), "Both favor A."),
        ("en", (["A", "B", "C"], [], []), "Both favor A, B and C."),
        ("en", ([], ["1"], []), "Both favor places of category 1."),
        ("en", ([], ["1", "2"], ["r", "s"]), "Both favor places of categories 1 and 2, and area r."),
        ("en", ([], [], ["r"]), "Both favor places in area r."),
        ("ko", (["골목식당"], [], []), "두 사람 모두 골목식당을 좋아합니다."),
        ("ko", (["A", "바다"], [], []), "두 사람 모두 A, 바다를 좋아합니다."),
        ("ko", (["Café 67"], [], []), "두 사람 모두 Café 67을(를) 좋아합니다."),
        ("ko", ([], ["1"], []), "두 사람 모두 1 분류의 장소를 좋아합니다."),
        ("ko", ([], ["1", "2"], ["종로"]), "두 사람 모두 1, 2 분류의 장소와 종로 지역을 좋아합니다."),
        ("ko", ([], [], ["종로"]), "두 사람 모두 종로 지역의 장소를 좋아합니다."),
    ],
)
def test_one_plain_sentence(language: Language, given: tuple[list[str], ...], said: str) -> None:
    """In either language; the particle follows the last syllable where there is one."""
    assert sentence(language, *given) == said


def test_the_same_silence_in_both_languages() -> None:
    """Nothing shared and nothing that may be named are one sentence in each."""
    assert [sentence(language, [], [], []) for language in LANGUAGES] == [NOTHING["en"], NOTHING["ko"]]
    with pytest.raises(UsageError, match="LANGUAGE"):
        language_of("fr")


def test_more_of_is_the_difference_of_shares_that_may_be_named() -> None:
    """Each one's lead is the other's lag."""
    explain = explainer({2: 100, 3: 100, 4: 100, 5: 100})
    ahead, behind = explain.more_of(rows(2, 3), rows(5)), explain.more_of(rows(5), rows(2, 3))
    assert ahead and behind and not {each.key for each in ahead} & {each.key for each in behind}
    assert all(0 < each.weight <= 1 for each in ahead + behind)


def test_what_one_has_most_more_of_comes_first() -> None:
    """Of {a, c} noodles are two thirds and cafes one; where only one may be named, it is the noodles."""
    for most, said in ((2, [str(NOODLES), str(CAFE)]), (1, [str(NOODLES)])):
        ahead = explainer({}, rules=EvidenceRules(most=most)).more_of(rows(2, 4), rows(5))
        assert [each.key for each in ahead] == said
        assert ahead[0].weight == pytest.approx(2 / 3)
