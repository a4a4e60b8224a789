"""The page on which the API is tried: from this server alone, with a key."""

from __future__ import annotations

import re
import shutil
from typing import Final

import orjson
import pytest
from playwright.sync_api import Request, sync_playwright

from tastetwin.serving.api import DOCS, PAGES
from tastetwin.serving.gateway.http import policy as gateway_policy
from tastetwin.serving.gateway.openapi import pages as gateway_pages
from tests.serving.app.conftest import Product

CHROMIUM: Final = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def test_all_that_the_page_needs_is_here(shop: Product) -> None:
    """Clusters without a way out, laptops on a train: nothing comes from elsewhere, and the browser sees to that."""
    said = shop.reply("GET", DOCS, "")
    needed = re.findall(r'(?:src|href)="([^"]+)"', said.body.decode())
    assert set(needed) == set(PAGES) - {DOCS} | {"data:,"}
    for path in PAGES:
        found = shop.reply("GET", path, "")
        assert found.status == 200 and found.body
        assert "default-src 'none'" in found.headers["content-security-policy"]
        assert "unsafe" not in found.headers["content-security-policy"]


def test_both_servers_have_the_same_pages() -> None:
    """A path that is let in and not answered would be an error of ours."""
    known = {(each.method, each.template) for each in gateway_policy().routes}
    assert set(gateway_pages()) == set(PAGES) and {("GET", page) for page in PAGES} <= known


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_request_can_be_tried_with_a_key(shop: Product) -> None:
    """Its first user is somebody with a new key and no program yet."""
    said: list[str] = []

    def watch(request: Request) -> None:
        said.extend([] if request.url.startswith(shop.url) else [request.url])

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.set_default_timeout(20_000)
        page.on("request", watch)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(shop.url + DOCS)
        page.click(".scheme-container button.authorize")
        page.fill("input[type=text]", shop.server_key)
        page.click(".auth-btn-wrapper button.authorize")
        page.click(".btn-done")
        page.click("[id$=make_token] .opblock-summary-control")
        page.click(".try-out__btn")
        page.click("button.execute")
        answer = page.inner_text(".live-responses-table .highlight-code")
        browser.close()
    assert orjson.loads(answer[answer.index("{") : answer.rindex("}") + 1])["seconds"] == 3_600
    assert said == []
