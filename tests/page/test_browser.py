"""The pages in a real Chromium: nothing breaks, nobody is left out, keys and screen readers work."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Final
from urllib.parse import quote

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from tastetwin.runs import published_run
from tastetwin.store import Store
from tests.page.web import CANARY, HOSTILE, Site, serving

CHROMIUM: Final = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine"),
]

PATHS: Final = [
    "/",
    "/users/u001",
    "/pairs/u001/u005",
    "/pairs/u001/u005?why=1",
    "/map?user=u001",
    "/health",
    "/diff",
    "/users/nobody",
]
RULES: Final = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


def opened(browser: Browser, site: Site, path: str, **context: object) -> Page:
    page = browser.new_context(**context).new_page()  # type: ignore[arg-type]
    page.set_default_timeout(20_000)
    page.goto(site.url + path)
    return page


@pytest.fixture
def page(browser: Browser, site: Site) -> Iterator[Page]:
    found = opened(browser, site, "/")
    yield found
    found.context.close()


@pytest.mark.parametrize(
    ("width", "scheme", "language"),
    [(320, "light", "ko-KR"), (320, "dark", "en-US"), (1280, "dark", "ko-KR"), (1280, "light", "en-US")],
)
def test_no_page_breaks_a_rule_of_accessibility(
    browser: Browser, site: Site, width: int, scheme: str, language: str
) -> None:
    """Contrast, names, landmarks, focus order (axe-core); at 320 px nothing is wider than the screen (WCAG 1.4.10)."""
    context = browser.new_context(
        viewport={"width": width, "height": 800},
        color_scheme=scheme,  # type: ignore[arg-type]
        locale=language,
    )
    page, said = context.new_page(), list[str]()
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    for path in PATHS:
        page.goto(site.url + path)
        found = [each["id"] for each in Axe().run(page, options=RULES).response["violations"]]
        assert found == [], path
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), path
    assert [text for text in said if "404" not in text] == []
    context.close()


def test_on_a_desktop_a_history_has_room_for_its_last_column(browser: Browser, site: Site) -> None:
    """Ratings stand there, 560 px from the left; who must scroll to see them does not know that they are there."""
    page = opened(browser, site, "/users/u001", viewport={"width": 1280, "height": 800})
    assert page.evaluate("document.querySelector('.two .scroll').clientWidth") >= 600
    page.context.close()


def test_the_rules_are_really_looked_at(page: Page) -> None:
    """The test above is worth what it can see."""
    page.evaluate("document.querySelector('label').remove(); document.querySelector('h1').style.color = '#eee'")
    found = {each["id"] for each in Axe().run(page, options=RULES).response["violations"]}
    assert {"label", "color-contrast"} <= found


def test_a_script_in_an_id_or_a_name_does_not_run(browser: Browser, site: Site) -> None:
    page = opened(browser, site, f"/users/{quote(HOSTILE[0], safe='')}")
    page.on("dialog", lambda _: pytest.fail("it ran"))
    assert CANARY in page.inner_text("h1") and CANARY in page.inner_text("#history + div")
    page.goto(site.url)
    page.fill("#user", '">')
    page.wait_for_selector("[role=option]")
    assert page.inner_text("[role=option]") == HOSTILE[0]
    page.context.close()


def test_a_user_is_found_with_the_keyboard_alone(page: Page) -> None:
    """As the pattern for comboboxes says (WAI-ARIA APG): arrows choose, the choice is announced, Enter takes it."""
    page.focus("#user")
    page.keyboard.type("u00")
    page.wait_for_selector("[role=option]")
    field = page.locator("#user")
    assert field.get_attribute("aria-expanded") == "true"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    chosen = page.locator("[role=option][aria-selected=true]")
    assert chosen.count() == 1 and chosen.inner_text() == "u002"
    assert field.get_attribute("aria-activedescendant") == chosen.get_attribute("id")
    page.keyboard.press("Escape")
    assert field.get_attribute("aria-expanded") == "false" and page.locator("#suggestions").is_hidden()
    page.keyboard.press("ArrowDown")
    page.wait_for_selector("[role=option]")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    page.wait_for_url("**/users?id=u008")
    assert "u008" in page.inner_text("h1")


def test_the_first_tab_leads_past_the_menu(page: Page) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"


def test_the_map_is_moved_by_keys_and_buttons(page: Page, site: Site) -> None:
    page.goto(site.url + "/map")

    def box() -> list[float]:
        return [float(each) for each in (page.get_attribute(".tastemap", "viewBox") or "").split()]

    whole = box()
    page.focus(".tastemap")
    page.keyboard.press("+")
    assert box()[2] == pytest.approx(0.7 * whole[2])
    before = box()[0]
    page.keyboard.press("ArrowLeft")
    assert box()[0] < before
    page.keyboard.press("0")
    assert box() == whole
    page.click("[data-do=in]")
    page.click("[data-do=in]")
    assert box()[2] == pytest.approx(0.49 * whole[2])
    page.click("[data-do=whole]")
    page.click(".tastemap a[href='#n1']")
    assert page.url.endswith("#n1")


def test_everything_but_suggestions_and_zoom_works_without_javascript(browser: Browser, site: Site) -> None:
    page = opened(browser, site, "/", java_script_enabled=False)
    page.fill("#user", "a/b/c")
    page.click("button")
    assert "a/b/c" in page.inner_text("h1")
    page.click(".twins tbody tr:first-child td:last-child a")
    assert "/pairs/" in page.url
    page.goto(site.url + "/map")
    assert page.locator(".buttons").is_hidden()
    page.context.close()


def test_a_run_is_approved_and_taken_back_by_hand(browser: Browser, own: Store) -> None:
    """Nothing happens before the question is answered."""
    first = published_run(own).run_id
    with serving(own) as site:
        page = opened(browser, site, "/diff?lang=ko")
        assert not page.locator(".approve button").is_visible()
        page.focus(".approve summary")
        page.keyboard.press("Enter")
        assert published_run(own).run_id == first
        page.click(".approve button")
        page.wait_for_url("**/diff?done=approve&lang=ko")
        assert "완료" in page.inner_text("[role=status]") and published_run(own).run_id != first
        page.click(".rollback summary")
        page.click(".rollback button")
        page.wait_for_url("**/diff?done=rollback&lang=ko")
        assert published_run(own).run_id == first
        page.context.close()
