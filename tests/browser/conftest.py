"""A real browser. Needs Playwright (the extra ``browser``) and Chromium."""

from __future__ import annotations

import os
import shutil

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
ARGUMENTS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking"]


@pytest.fixture
def browser(monkeypatch):
    if CHROMIUM is None:
        if os.environ.get("MAILPOOL_REQUIRE_BROWSER"):
            pytest.fail("There is no Chromium.")
        pytest.skip("there is no Chromium")
    sync_playwright = pytest.importorskip("playwright.sync_api").sync_playwright

    # Playwright has an event loop in this thread, in which Django would refuse to work.
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    return browser.new_page()


@pytest.fixture
def log_in(page, live_server, admin_user):
    """Open a page of the admin as ``admin_user``: ``log_in("/admin/mailpool/")``."""

    def log_in(path):
        page.goto(live_server.url + path)
        page.fill("#id_username", admin_user.get_username())
        page.fill("#id_password", "password")
        page.click("[type=submit]")

    return log_in
