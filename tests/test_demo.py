"""The demo tells the story, and its page sends."""

from __future__ import annotations

import http.cookiejar
import os
import re
import socket
import subprocess
import sys
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

MANAGE = Path(__file__).resolve().parent.parent / "example_project" / "manage.py"


@pytest.fixture
def demo(tmp_path):
    """Start ``manage.py demo`` with a fresh state."""
    environment = {k: v for k, v in os.environ.items() if k != "DJANGO_SETTINGS_MODULE"}
    environment |= {"EXAMPLE_STATE_DIR": str(tmp_path), "COLUMNS": "100", "PYTHONUNBUFFERED": "1"}
    started = []

    def start(*args):
        command = [sys.executable, "-W", "error::DeprecationWarning:mailpool", str(MANAGE), "demo"]
        process = subprocess.Popen(
            [*command, "--latency", "0", *args],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.terminate()
        process.wait(20)
        process.stdout.close()
        process.stderr.close()


def cells(output):
    """The cells of the table, row by row."""
    rows = [line.strip("│").split("│") for line in output.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in row] for row in rows if len(row) == 5]


def test_story_in_the_terminal(demo, tmp_path):
    for _ in range(2):  # the second run finds what the first one made
        process = demo("--no-serve", "--messages", "5")
        output, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, "")
        on, on_2, off, _, wrong, wrong_2 = cells(output)
        assert on[1:4] == ["5 from Bob", "5 from Mary", "2 opened"]
        assert on_2[3] == "8 reused"
        assert off[1:4] == ["5 from Bob", "5 from Mary", "10 opened"]
        assert wrong[1:4] == ["5 from Bob", "empty", "1 opened"]
        assert wrong_2[1] == "5 from Mary (wrong!)"
        assert "5 of Mary's messages on Bob's login" in output
    assert (tmp_path / ".env").stat().st_mode & 0o077 == 0


def test_picture_of_the_terminal(demo, tmp_path):
    demo("--no-serve", "--messages", "1", "--save-svg", str(tmp_path / "t.svg")).wait(60)
    assert "Bob" in (tmp_path / "t.svg").read_text()


@pytest.mark.parametrize(
    "args",
    [
        ["--messages", "0"],
        ["--latency", "-1"],
        ["--port", "70000"],
        ["--no-serve", "--save-svg", "/no/such/folder/demo.svg"],
    ],
)
def test_bad_options(demo, args):
    process = demo(*args)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.startswith("CommandError: ")
    assert args[-2] in errors


def serve(demo):
    """Start it with its pages: what it said on the way, and a function that fetches one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = demo("--messages", "1", "--port", str(port))
    said = ""
    for line in process.stdout:
        said += line
        if "Ctrl-C ends" in line:
            break
    cookies = http.cookiejar.CookieJar()
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(cookies))

    def fetch(path="/", **data):
        url = f"http://127.0.0.1:{port}{path}"
        encoded = urllib.parse.urlencode(data).encode() if data else None
        return browser.open(url, encoded, timeout=60).read().decode()

    return said, fetch


def token_of(page):
    return re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page)[1]


def test_page_sends_as_the_chosen_tenant(demo):
    _, fetch = serve(demo)
    page = fetch()
    token = token_of(page)
    tenants = {
        name: key
        for key, name in re.findall(r'<option value="([\w-]+)"(?: selected)?>(\w+)<', page)
    }

    def send(tenant, to="you@example.com"):
        return fetch(
            csrfmiddlewaretoken=token, tenant=tenant, to=to, subject="Hello", body="Hello!"
        )

    assert "newly opened" in send(tenants["Bob"])
    page = send(tenants["Bob"])
    assert "reused" in page
    assert re.search(r'<th scope="row">Bob</th><td>Bob &lt;bob@example.com&gt;</td>', page)
    page = send("")  # of no tenant: the site's own
    assert re.search(r'<th scope="row">Site</th><td>Site &lt;site@example.com&gt;</td>', page)
    assert "Enter a valid email address" in send(tenants["Mary"], to="nonsense")
    assert "Content" not in fetch("/static/demo/style.css")[:10]
    assert "Log in" in fetch("/admin/")


def test_bob_enters_verifies_and_revokes_an_account_of_his_own(demo, tmp_path):
    said, fetch = serve(demo)
    password = re.search("ADMIN_PASSWORD=(.+)", (tmp_path / ".env").read_text())[1]
    port = re.search(r"port (\d+), STARTTLS", said)[1]
    assert "own accounts" in fetch()
    page = fetch("/mail/")
    assert "Sign in" in page

    def submit(path, page, **data):
        return fetch(path, csrfmiddlewaretoken=token_of(page), **data)

    page = submit("/login/?next=/mail/", page, username="bob", password=password)
    assert "No mail account has been entered yet" in page
    account = {"host": "localhost", "port": port, "security": "starttls", "username": "bob"}
    account |= {"password": "bobs-secret-password", "default_from": "shop@bob.example"}
    page = submit("/mail/new/", page, **account)
    assert "Inactive until it is verified" in page
    verify, revoke, add = re.findall(r'action="(/mail/[\w-]+/\w+/)"', page)
    page = submit(verify, page)
    assert "this account is in use" in page
    test = re.search(r'action="(/mail/[\w-]+/test/)"', page)[1]
    assert "the server did not take the message" in submit(test, page)

    # The address that it sends as is not proven to be Bob's, until he reads what is sent to it.
    def button(name):
        return re.search(rf'action="(/mail/[\w/-]+/{name}/)"', page)[1]

    page = submit(add, page, address="shop@bob.example")
    page = submit(button("code"), page)
    code = re.search(r"The code is: (\d{4} \d{4})", fetch("/"))[1]
    page = submit(button("enter"), page, code=code)
    assert "shop@bob.example is yours" in page
    assert "Sent to bob@example.com" in submit(test, page)
    assert "Revoked" in submit(revoke, page)
    assert "bobs-secret-password" not in page
