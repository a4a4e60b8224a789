"""Each attack finds a planted leak, and nothing where there is none: a broken attack must not pass as privacy."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from typing import Any, Final, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attacks import membership as members_of
from attacks.accounts import Game, Knowledge, ask, questions_of
from attacks.diffs import new_favor, new_user, whole_knowledge
from attacks.figures import Trial
from attacks.sentences import betrays, common_categories, nameable, sentences
from attacks.service import LIST, Answers, Service, open_service, with_accounts, without_favors
from tastetwin.analysis.evidence import EvidenceRules, Explainer, count_visitors
from tastetwin.analysis.sentences import NOTHING
from tastetwin.config import Config, EvaluateConfig, TrainConfig
from tastetwin.features.histories import Histories
from tastetwin.model.linear import histories_matrix
from tests.model import towns

pytestmark = pytest.mark.slow

PLACES: Final = 60
VOCABULARY: Final = towns.vocabulary(PLACES)
TOWN: Final = towns.histories(users=240, places=PLACES, groups=1, length=24, seed=3)
SMALL: Final = TrainConfig(dim=32, layers=1, width=16, heads=2, epochs=1, batch_users=32, max_length=40, threads=1)
CONFIG: Final = Config(train=SMALL, evaluate=EvaluateConfig(holdout_share=0.1))
GAMES: Final[tuple[Game, ...]] = ("favored or taken out", "favored or not")

Numbers = Callable[[Histories, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Planted:
    """A service whose lists never change with one favor, and whose chances say what the test wants said."""

    numbers: Numbers
    """(histories, [n, n_rows] who favors what) -> [n, n] what an owner is told of another."""
    lists: Numbers
    """The same -> [n, LIST] twins."""
    vocabulary = VOCABULARY
    config = CONFIG

    def answers(self, histories: Histories, hidden: np.ndarray | None = None) -> Answers:
        favors = histories_matrix(histories, VOCABULARY.n_rows).toarray()
        twins = self.lists(histories, favors)
        told = np.take_along_axis(self.numbers(histories, favors), twins.astype(np.int64), axis=1)
        same = np.zeros(twins.shape)
        explainer = Explainer(VOCABULARY, count_visitors(histories, VOCABULARY))
        return Answers(histories, twins, same, same, told.astype(np.float64), explainer)


def most_in_common(histories: Histories, favors: np.ndarray) -> np.ndarray:
    """Those who share most places, an owner's last one aside."""
    quiet = favors.copy()
    quiet[np.arange(len(quiet)), loudest(histories)] = 0
    shared = quiet @ favors.T
    np.fill_diagonal(shared, -1)
    return np.argsort(-shared, axis=1, kind="stable")[:, :LIST].astype(np.int32)


def next_ten(histories: Histories, favors: np.ndarray) -> np.ndarray:
    """So that everybody is in as many lists, whatever they favor."""
    return ((np.arange(len(favors))[:, None] + np.arange(1, LIST + 1)) % len(favors)).astype(np.int32)


def loudest(histories: Histories) -> np.ndarray:
    """Everybody's last place: of a made-up account the one in question."""
    return np.asarray(histories.places[histories.offsets[1:] - 1])


def has_the_loud_place(histories: Histories, favors: np.ndarray) -> np.ndarray:
    return np.asarray(favors[:, loudest(histories)].T)


def number_of_places(histories: Histories, favors: np.ndarray) -> np.ndarray:
    return np.tile(histories.lengths(), (histories.n_users, 1))


def likeness_of_all(histories: Histories, favors: np.ndarray) -> np.ndarray:
    return np.tile((favors @ favors.T).sum(axis=1)[:, None], (1, len(favors)))


def chatter(histories: Histories, favors: np.ndarray) -> np.ndarray:
    """Another number each time, of nothing."""
    return np.random.default_rng(int(favors.sum()) * 977 + len(favors)).random((len(favors), len(favors)))


def planted(numbers: Numbers, lists: Numbers = next_ten) -> Service:
    return cast(Service, Planted(numbers, lists))


def leak(trial: Trial, kind: str = "+ chance") -> tuple[float, float, float]:
    found = trial.leaks()[kind]
    return found.low, found.value, found.high


def finds_nothing(trial: Trial, kind: str = "+ chance") -> bool:
    low, _, high = leak(trial, kind)
    return low <= 0.5 <= high


@pytest.mark.parametrize("game", GAMES)
def test_made_up_accounts_find_a_planted_leak(game: Game) -> None:
    """Where the answer says whether a twin has one's most visited place, the attacker knows."""
    trial = ask(planted(has_the_loud_place, most_in_common), TOWN, Knowledge(5), game, 80, 1)
    assert trial.secret.mean() == 0.5
    assert leak(trial)[0] > 0.95


def test_made_up_accounts_find_nothing_where_there_is_nothing() -> None:
    """Numbers of nothing, and lists that do not hang on the place in question."""
    trial = ask(planted(chatter, most_in_common), TOWN, Knowledge(5), "favored or taken out", 80, 1)
    assert finds_nothing(trial)
    assert finds_nothing(trial, "ids")


def test_places_that_are_not_favored_are_as_popular_and_of_the_same_regions() -> None:
    """Else popularity alone would tell, and the attack would look better than it is."""
    asked = list(questions_of(TOWN, VOCABULARY, Knowledge(5), "favored or not", 100, np.random.default_rng(1)))
    favors = histories_matrix(TOWN, VOCABULARY.n_rows).toarray()
    visitors = np.log1p(favors.sum(axis=0))
    assert all(bool(favors[each.target, each.place]) == each.favored for each in asked)
    assert all(favors[each.target, each.known].all() and each.place not in each.known for each in asked)
    yes, no = (np.mean([visitors[each.place] for each in asked if each.favored == side]) for side in (True, False))
    assert abs(yes - no) < 0.1


def test_two_days_tell_a_favor_where_the_answer_counts_places() -> None:
    """History lengths betray every favor; ids that never change betray none."""
    trial = new_favor(planted(number_of_places), TOWN, 80, 0.0, 1)
    assert leak(trial)[0] > 0.95
    assert finds_nothing(new_favor(planted(chatter), TOWN, 80, 0.0, 1))


def test_two_days_tell_who_came_where_answers_weigh_everybody() -> None:
    """Somebody who is shown to nobody moves the numbers of those near to them."""
    assert leak(new_user(planted(likeness_of_all), TOWN, 80, 0.0, 1))[0] > 0.8
    assert finds_nothing(new_user(planted(chatter), TOWN, 80, 0.0, 1))


def test_who_knows_all_else_sees_any_difference() -> None:
    """Of a number that hangs on the favor, and of none."""
    assert leak(whole_knowledge(planted(number_of_places), TOWN, 20, 1))[0] == 1
    constant = planted(lambda histories, favors: np.zeros((len(favors), len(favors))))
    assert leak(whole_knowledge(constant, TOWN, 20, 1)) == (0.5, 0.5, 0.5)


@pytest.fixture(scope="module")
def memorised() -> Trial:
    """Models fitted to random favors: there is nothing to learn but who was there."""
    town = towns.histories(users=120, places=PLACES, groups=1, length=16, seed=5)
    service = Service(VOCABULARY, CONFIG, date(2026, 6, 30), cast(Any, None), None)
    return members_of.shadows(service, town, 3, 1).as_they_are()


def test_shadows_find_who_was_memorised(memorised: Trial) -> None:
    """Vectors of random histories are alike in halves only for those whom training saw."""
    assert leak(memorised, "raw score")[0] > 0.6


def test_shadows_find_nothing_when_told_the_wrong_members(memorised: Trial) -> None:
    """The same features, and a secret that has nothing to do with them."""
    other = replace(memorised, secret=np.random.default_rng(2).permutation(memorised.secret))
    assert finds_nothing(other, "raw score")


def test_ratios_by_user_find_what_the_crowd_hides() -> None:
    """A trace of membership far smaller than what users differ by anyway."""
    rng = np.random.default_rng(1)
    members = rng.random((6, 300)) < 0.5
    values = (10 * rng.normal(size=300) + members + 0.2 * rng.normal(size=(6, 300)))[:, :, None]
    owner = np.tile(np.arange(300), 6)
    plain = Trial({"score": values.reshape(-1, 1)}, members.ravel(), owner)
    ratios = members_of.likelihood_ratios(values, members)
    by_user = Trial({"score": ratios.reshape(-1, 1)}, members.ravel(), owner)
    assert leak(plain, "raw score")[2] < 0.6
    assert leak(by_user, "raw score")[0] > 0.9
    noise = members_of.likelihood_ratios(rng.normal(size=(6, 300, 1)), members)
    assert finds_nothing(replace(by_user, views={"score": noise.reshape(-1, 1)}), "raw score")


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12))
def test_columns_of_nothing_do_not_hide_a_secret(seed: int, noise: int) -> None:
    """An attacker is given more to look at, and must not see less: else more answers would pass as more privacy."""
    rng = np.random.default_rng(seed)
    secret = np.arange(120) % 2 == 0
    views = {"ids": secret[:, None] * 1.0, "ranks": rng.normal(size=(120, noise)), "percentile": np.zeros((120, 1))}
    found = Trial(views, secret, np.arange(120)).leaks()
    assert found["+ percentile"].value > 0.95
    nothing = Trial({"ids": rng.normal(size=(120, noise))}, secret, np.arange(120)).leaks()["ids"]
    assert nothing.value < 0.75


def test_what_only_two_numbers_together_tell_is_found() -> None:
    """What an account with the place sees says something only beside what one without it sees."""
    rng, secret = np.random.default_rng(1), np.arange(200) % 2 == 0
    plain = 2 * rng.normal(size=200)
    seen = np.stack([plain + secret + 0.05 * rng.normal(size=200), plain], axis=1)
    assert leak(Trial({"ids": seen[:, :1]}, secret, np.arange(200)), "ids")[2] < 0.75
    assert leak(Trial({"ids": seen}, secret, np.arange(200)), "ids")[0] > 0.8


@pytest.fixture(scope="module")
def service() -> Service:
    return open_service(TOWN, VOCABULARY, CONFIG, date(2026, 6, 30))


def test_the_product_is_attacked_and_not_a_picture_of_it(service: Service) -> None:
    """Who knows all but one place of somebody learns the last one by the rule that doubled accounts never meet."""
    trial = ask(service, TOWN, Knowledge(None), "favored or taken out", 24, 1)
    assert leak(trial, "ids")[1] > 0.9


def test_worlds_differ_by_what_they_say() -> None:
    """One place of one user, and accounts behind everybody."""
    less = without_favors(TOWN, np.array([7]), np.array([TOWN.places[TOWN.offsets[7]]]))
    assert (less.lengths() - TOWN.lengths()).tolist() == [-1 if user == 7 else 0 for user in range(TOWN.n_users)]
    more = with_accounts(TOWN, [(np.array([5, 3]), np.array([1, 30]))])
    assert more.n_users == TOWN.n_users + 1
    assert more.places[more.offsets[-2] :].tolist() == [5, 3]
    assert more.user_ids.astype(str).tolist() == sorted(more.user_ids.astype(str))


def test_every_sentence_of_a_day_keeps_silent(service: Service) -> None:
    """With the commonest categories called sensitive, so that there is much to keep silent about."""
    sensitive = common_categories(TOWN, VOCABULARY, 1)
    answers = service.answers(TOWN, rules=EvidenceRules(sensitive_categories=sensitive))
    said = {sentence for _, _, sentence in sentences(answers)}
    assert len(said) > 10
    allowed = nameable(TOWN, VOCABULARY, sensitive)
    assert not [sentence for sentence in said if betrays(sentence, allowed)]


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 60), st.integers(3, 40), st.sets(st.integers(0, 2)), st.integers(0, 10_000))
def test_no_sentence_betrays_anything_in_any_town(users: int, places: int, sensitive: set[int], seed: int) -> None:
    """Few users, so that most places are known to fewer than ten."""
    town, vocabulary = towns.histories(users, places, 1, 6, seed), towns.vocabulary(places)
    rules = EvidenceRules(sensitive_categories=frozenset(sensitive))
    explainer = Explainer(vocabulary, count_visitors(town, vocabulary), rules)
    allowed = nameable(town, vocabulary, rules.sensitive_categories)
    rows = np.split(town.places, town.offsets[1:-1])
    for first, second in itertools.pairwise(rows):
        assert not betrays(explainer.explain(first, second).sentence, allowed)


@pytest.mark.parametrize(
    ("sentence", "bad"),
    [
        (NOTHING["en"], False),
        ("Both favor p1.", False),
        ("Both favor p1, p2 and p1.", False),
        ("Both favor places of category 4, and area r1.", False),
        ("Both favor places of categories 4 and 5.", False),
        ("Both favor places in area r1.", False),
        ("Both favor p3.", True),
        ("Both favor p1 and p3.", True),
        ("Both favor places of categories 4 and 6.", True),
        ("Both favor places of category 4, and area r2.", True),
        ("Both favor p1 at 12:30.", True),
        ("Both favor p1. Last on Monday.", True),
        ("p1", True),
    ],
)
def test_the_check_of_sentences_sees_what_it_must(sentence: str, bad: bool) -> None:
    """A rare place, a sensitive category, an area of few, a time, anything unforeseen."""
    allowed = {"places": frozenset({"p1", "p2"}), "categories": frozenset({"4", "5"}), "area": frozenset({"r1"})}
    assert betrays(sentence, allowed) is bad
