"""The routes: what they answer, to whom, and what never gets out."""

from __future__ import annotations

import itertools
import re
import threading
from urllib.parse import quote, urlencode

import pytest

from tastetwin.analysis.lookup import TwinLists
from tastetwin.delivery.publish import promote_run
from tastetwin.page.app import MAX_BODY
from tastetwin.privacy.opt_out import opt_out
from tastetwin.runs import published, published_run
from tastetwin.store import Store
from tests.page.web import CANARY, HOSTILE, Answer, Html, Site, crawl, serving, words

pytestmark = pytest.mark.slow

RUNS = ("2026-06-01.1", "2026-06-02.1")


@pytest.fixture(scope="module")
def everything(site: Site) -> dict[str, Answer]:
    """Every page there is a link to."""
    return crawl(site)


# -- works ------------------------------------------------------------------------------------------------------------


def test_every_link_of_every_page_leads_somewhere(everything: dict[str, Answer]) -> None:
    """Of users with ids that are scripts, paths, queries and templates too; none of them is carried out."""
    assert len(everything) > 100
    assert {path: answer.status for path, answer in everything.items() if answer.status != 200} == {}
    for start in ("/users/", "/pairs/", "/map", "/health", "/diff"):
        assert any(path.startswith(start) for path in everything)


@pytest.mark.parametrize("user", HOSTILE)
def test_an_id_of_any_characters_has_its_page(site: Site, user: str) -> None:
    for path in (f"/users?{urlencode({'id': user})}", f"/users/{quote(user, safe='')}"):
        answer = site.ask(path)
        assert answer.status == 200
        assert f"User {user}" in words(answer.text)
    pair = site.ask(f"/pairs?{urlencode({'a': user, 'b': 'u001'})}")
    assert pair.status == 200 and user in words(pair.text)


def test_the_page_shows_the_list_that_readers_see(site: Site, hostile: Store) -> None:
    twins = TwinLists(hostile, published_run(hostile)).twins("u001", 25)
    shown = [*site_twins(site, "/users/u001"), *site_twins(site, "/users/u001?at=2")]
    assert shown[:25] == [twin.twin_idno for twin in twins]
    assert twins[0].evidence.sentence in " ".join(words(site.ask("/users/u001").text).split())


def site_twins(site: Site, path: str) -> list[str]:
    table = site.ask(path).text.split('class="twins"')[1].split("</table>")[0]
    return [text for text in Html(table.replace("<th", "\0<th")).texts if text.strip() in set(_ids(table))]


def _ids(table: str) -> list[str]:
    rows = re.findall(r'<th scope="row" class="id"><a href="[^"]*">(.*?)</a>', table)
    return ["".join(Html(row).texts) for row in rows]


def test_near_and_far_are_searched_afresh(site: Site, hostile: Store) -> None:
    lists = TwinLists(hostile, published_run(hostile))
    assert site_twins(site, "/users/u001?by=far") == [twin.twin_idno for twin in lists.far("u001", 20)]
    assert site_twins(site, "/users/u001?by=near") == [twin.twin_idno for twin in lists.near("u001", 20)]


def test_a_pair_shows_shared_places_first_and_all_of_both(site: Site, hostile: Store) -> None:
    """Counted from the favors themselves."""
    lists = TwinLists(hostile, published_run(hostile))
    mine, theirs = (
        {each["review_place_id"] for each in lists.favors(user)["review_list"]} for user in ("u001", "u005")
    )
    text = site.ask("/pairs/u001/u005").text
    counted = [int(found) for found in re.findall(r'<span class="soft small">(\d+)</span></h2>', text)]
    assert counted == [len(mine & theirs), len(mine - theirs), len(theirs - mine)]
    assert text.count('<g class="mark both">') == len(mine & theirs)
    assert text.count('<g class="mark one">') == len(mine - theirs)


def test_suggestions_begin_as_typed_and_are_few(site: Site) -> None:
    found = site.ask("/suggest?q=u00")
    assert found.headers["content-type"] == "application/json"
    assert found.text == '{"users":["u001","u002","u004","u005","u007","u008"]}'
    assert site.ask("/suggest?q=").text == '{"users":[]}'
    assert site.ask("/suggest?" + urlencode({"q": "한글"})).text == '{"users":["한글 사용자 😀"]}'


def test_the_language_of_the_browser_is_the_default_and_a_choice_stays(site: Site) -> None:
    korean = site.ask("/health", accept_language="ko-KR,ko;q=0.9,en;q=0.8")
    assert '<html lang="ko">' in korean.text and "목록의 건강 상태" in korean.text
    chosen = Html(site.ask("/?lang=ko", accept_language="en").text)
    own = [link for link in chosen.links if not link.startswith("/static/") and "#" not in link]
    assert chosen.all("html")[0]["lang"] == "ko" and own
    assert [link for link in own if "lang=ko" not in link] == ["/?lang=en"]


# -- what never gets out ----------------------------------------------------------------------------------------------


def test_no_page_runs_or_loads_anything_that_is_not_ours(everything: dict[str, Answer]) -> None:
    """Names and ids here are scripts; each must come out as text."""
    assert any(CANARY in words(answer.text) for answer in everything.values())
    for path, answer in everything.items():
        page = Html(answer.text)
        assert page.all("script") == [{"src": "/static/page.js", "defer": None}], path
        names = {name for _, attributes in page.tags for name in attributes}
        assert not [name for name in names if name.startswith("on") or name == "style"], path
        links = [
            value
            for _, attributes in page.tags
            for name in ("href", "src", "action", "data", "srcset")
            if (value := attributes.get(name))
        ]
        assert not [link for link in links if not link.startswith(("/", "#")) or link.startswith("//")], path
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert "set-cookie" not in answer.headers


def test_every_page_has_its_landmarks_headings_and_labels(everything: dict[str, Answer]) -> None:
    for path, answer in everything.items():
        page = Html(answer.text)
        assert len(page.all("h1")) == len(page.all("main")) == 1, path
        levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
        assert all(after <= before + 1 for before, after in itertools.pairwise(levels)), path
        assert len(page.all("table")) == len(page.all("caption")), path
        assert all(each.get("scope") for each in page.all("th")), path
        ids = [value for _, attributes in page.tags if (value := attributes.get("id"))]
        assert len(ids) == len(set(ids)), path


def test_somebody_who_opted_out_is_on_no_page(own: Store) -> None:
    """From the next request on, though the run was made and the map drawn before."""
    gone = "u031"
    with serving(own) as site:
        site.drawn()
        assert any(gone in words(answer.text) for answer in crawl(site, 60).values())
        opt_out(own, [gone])
        found = crawl(site, 200)
        assert len(found) > 100
        assert [path for path, answer in found.items() if gone in answer.text] == []
        assert gone not in site.ask("/suggest?q=u03").text
        for path in (f"/users/{gone}", f"/pairs/u001/{gone}", f"/pairs/{gone}/u001", f"/map?user={gone}"):
            assert site.ask(path).status == 404


def test_unknown_new_and_opted_out_users_get_the_same_answer(own: Store) -> None:
    """Nobody can find out who has opted out by asking."""
    opt_out(own, ["u031"])
    with serving(own) as site:
        for path in ("/users/{}", "/pairs/u001/{}", "/map?user={}"):
            answers = [site.ask(path.format(user)) for user in ("u031", "nobody")]
            plain = {answer.text.replace("u031", "X").replace("nobody", "X") for answer in answers}
            assert [answer.status for answer in answers] == [404, 404] and len(plain) == 1


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/users/u001?at=0",
        "/users/u001?at=51",
        "/users/u001?at=x",
        "/users/u001?by=" + quote(CANARY),
        "/users?id=" + "x" * 1001,
        "/users",
        "/suggest?q=" + "x" * 201,
        "/diff?done=" + quote(CANARY),
    ],
)
def test_every_parameter_has_its_limits_and_the_answer_says_which(site: Site, path: str) -> None:
    answer = site.ask(path)
    assert answer.status == 400
    assert "PAGE-PARAMETER" in answer.text and CANARY not in answer.text


@pytest.mark.parametrize("path", ["/nope", "/users/", "/users/a/b", "/pairs/u001", "/pairs/a/b/c", "/static/../app.py"])
def test_what_is_not_there_is_said_to_be_so(site: Site, path: str) -> None:
    answer = site.ask(path)
    assert answer.status == 404 and ("Nothing here" in answer.text or path.startswith("/static"))


@pytest.mark.parametrize(("path", "method"), [("/", "POST"), ("/diff", "POST"), ("/diff/approve", "GET")])
def test_a_method_that_a_route_does_not_have_is_refused(site: Site, path: str, method: str) -> None:
    assert site.ask(path, method).status == 405


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1.evil.example", "", "169.254.0.1"])
def test_another_name_than_its_own_gets_no_answer(site: Site, host: str) -> None:
    """A page elsewhere may point its own name at this machine (DNS rebinding)."""
    answer = site.ask("/users/u001", host=host.format(port=site.port))
    assert answer.status in (400, 403) and "u001" not in words(answer.text)


@pytest.mark.parametrize("host", ["localhost:{port}", "127.0.0.1:{port}", "[::1]:{port}", "LOCALHOST"])
def test_its_own_names_do(site: Site, host: str) -> None:
    assert site.ask("/", host=host.format(port=site.port)).status == 200


@pytest.mark.parametrize(
    ("change", "headers"),
    [
        ({}, {"origin": "http://evil.example"}),
        ({}, {"origin": "null"}),
        ({}, {"origin": ""}),
        ({"token": "guessed"}, {}),
        ({"token": ""}, {}),
        ({"token": "é"}, {}),
        ({"filler": "x" * MAX_BODY}, {}),
        ({f"filler{at}": "x" for at in range(10)}, {}),
    ],
)
def test_a_form_from_elsewhere_publishes_nothing(
    site: Site, hostile: Store, change: dict[str, str], headers: dict[str, str]
) -> None:
    answer = site.post("/diff/approve", {**site.form("approve"), **change}, **headers)
    assert answer.status == 403 and "PAGE-REFUSED" in answer.text
    assert published_run(hostile).run_id == RUNS[0]


# -- approve and roll back --------------------------------------------------------------------------------------------


def test_who_approves_reads_why_the_run_waits(own: Store) -> None:
    """A button that publishes a run without a day's reviews must not look like any other."""
    with serving(own) as site:
        assert "AWAITS-APPROVAL" in words(site.ask("/diff").text)
        assert site.post("/diff/approve", site.form("approve")).status == 303
        assert "AWAITS-APPROVAL" not in words(site.ask("/diff").text)


def test_approve_publishes_once_however_often_it_is_sent(own: Store) -> None:
    """A double click, or two people: one of them decides, the others are told."""
    with serving(own) as site:
        form, answers = site.form("approve"), list[int]()
        posts = [
            threading.Thread(target=lambda: answers.append(site.post("/diff/approve", form).status)) for _ in range(6)
        ]
        for each in posts:
            each.start()
        for each in posts:
            each.join()
        assert sorted(answers)[0] == 303 and all(status in (409, 503) for status in sorted(answers)[1:])
        assert "PAGE-STALE" in site.post("/diff/approve", form).text
        pointer = published(own)
        assert pointer is not None and (pointer.run_id, pointer.previous) == (RUNS[1], [RUNS[0]])
        assert f"run {RUNS[1]}" in words(site.ask("/").text)
        assert "awaits" not in words(site.ask("/").text)


def test_a_roll_back_goes_one_step_however_often_it_is_sent(own: Store) -> None:
    promote_run(own, RUNS[1])
    told: list[str] = []
    with serving(own, lambda: told.append(published_run(own).run_id)) as site:
        form = site.form("rollback")
        assert site.post("/diff/rollback", form).status == 303
        again = site.post("/diff/rollback", form)
        assert again.status == 409 and "PAGE-STALE" in again.text
        assert told == [RUNS[0]], "trackers follow what readers see"
        assert published_run(own).run_id == RUNS[0]
        assert RUNS[0] in words(site.ask("/diff?done=rollback").text)


def test_what_was_published_meanwhile_is_seen_before_anything_is_decided(own: Store) -> None:
    with serving(own) as site:
        form = site.form("approve")
        promote_run(own, RUNS[1])
        stale = site.post("/diff/approve", form)
        assert stale.status == 409 and "PAGE-STALE" in stale.text
        assert f"run {RUNS[1]}" in words(site.ask("/").text)


def test_only_a_delivered_run_can_be_approved(own: Store) -> None:
    with serving(own) as site:
        answer = site.post("/diff/approve", {**site.form("approve"), "run": "2026-01-01.1"})
        assert answer.status == 404 and "UNKNOWN-RUN" in answer.text
        assert published_run(own).run_id == RUNS[0]


def test_a_store_that_another_process_writes_is_left_alone(own: Store) -> None:
    with serving(own) as site:
        form = site.form("approve")
        with own.writing():
            answer = site.post("/diff/approve", form)
        assert answer.status == 503 and "STORE-BUSY" in answer.text
        assert published_run(own).run_id == RUNS[0]


@pytest.mark.parametrize(("lang", "condition"), [("en", "close enough"), ("ko", "충분히 가까움")])
def test_why_and_why_not_when_asked(site: Site, lang: str, condition: str) -> None:
    """Every condition in the reader's language; without the question only the way to it."""
    plain, asked = (site.ask(f"/pairs/u001/u005?lang={lang}{more}").text for more in ("", "&why=1"))
    assert "why=1" in plain and condition not in plain
    assert asked.count('<th scope="row">') >= 7 and condition in asked
