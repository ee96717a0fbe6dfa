"""The examples of the documentation run.

Every ``python`` block of a page is executed, in order and in one namespace. Blocks that begin
with a comment that names a file (``# settings.py``) are for that file, and are only compiled.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mailpool import checks, conf, testing
from mailpool.backends import EmailBackend
from mailpool.models import SERVER_BOUNDS, Credential, MailServer
from tests.factories import CredentialFactory

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# [\w/]+\.py\n")


@pytest.fixture
def tenants(db):
    for slug in ("acme", "bob", "mary"):
        CredentialFactory(tenant__slug=slug, username=slug)


def test_there_are_examples():
    assert sum(len(BLOCK.findall(page.read_text())) for page in PAGES) > 15


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_run(page, tenants, request, monkeypatch):
    # An example may name mailpool's backend itself.
    monkeypatch.setattr(EmailBackend, "transmit", staticmethod(testing.EmailBackend.transmit))
    namespace: dict[str, object] = {}
    with testing.capture():
        for number, code in enumerate(BLOCK.findall(page.read_text()), start=1):
            compiled = compile(code, f"{page.name}, example {number}", "exec")
            if FILE.match(code):
                continue
            before = set(namespace)
            exec(compiled, namespace)
            for name in set(namespace) - before:
                if name.startswith("test_"):  # an example of a test: run it as one
                    namespace[name](request.getfixturevalue("mailpool_outbox"))
    assert Credential.objects.exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    for target, heading in re.findall(r"\]\(([^)#:]*)(?:#([^)]+))?\)", page.read_text()):
        other = page.parent / target if target else page
        assert other.exists(), target
        assert not heading or heading in headings(other), f"{target}#{heading}"


def headings(page: Path) -> list[str]:
    """What a link to a heading has after the #, on GitHub as in what Sphinx makes."""
    found = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return [re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_can_be_read_on_github(page):
    """Which knows neither the roles nor the targets of MyST."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert re.findall(r"\{[\w:]+\}`[^`]*`|^\([\w-]+\)=$", text, re.MULTILINE) == []


# What there is, is documented.


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


@pytest.mark.parametrize("name", conf.DEFAULTS)
def test_settings_are_documented(name):
    assert f"| `{name}` |" in page("settings.md")


@pytest.mark.parametrize("name", sorted({*SERVER_BOUNDS, "single_flight"} - {"port"}))
def test_limits_of_a_server_are_documented(name):
    assert f"| {MailServer._meta.get_field(name).verbose_name} |" in page("settings.md")


def test_checks_are_documented():
    sources = Path(checks.__file__).parent.glob("*.py")
    ids = {
        found
        for path in sources
        for found in re.findall(r'"(mailpool\.[EW]\d+)"', path.read_text())
    }
    assert ids == set(re.findall(r"\| `(mailpool\.[EW]\d+)` \|", page("settings.md")))


def test_modules_are_documented():
    layout = page("package-layout.md")
    modules = [
        path.name
        for path in Path(conf.__file__).parent.rglob("*.py")
        if path.name != "__init__.py" and not {"migrations", "management", "admin"} & {*path.parts}
    ]
    assert [name for name in modules if name not in layout] == []


def test_commands_are_documented():
    commands = Path(conf.__file__).parent.glob("management/commands/mailpool_*.py")
    assert [path.stem for path in commands if f"## `{path.stem}`" not in page("commands.md")] == []


def test_the_threat_model_names_tests_that_there_are():
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", page("threat-model.md"))
    assert len(named) > 30
    for file, function in named:
        code = (ROOT / "tests" / file).read_text()
        assert re.search(rf"def {function}\(", code), f"{file}::{function}"
