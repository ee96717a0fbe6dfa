"""Texts for people are marked, and the catalogs that are shipped translate all of them."""

from __future__ import annotations

import ast
import io
import os
import re
import shutil
import subprocess
import sys
from gettext import GNUTranslations
from pathlib import Path

import pytest
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po

import mailpool

PACKAGE = Path(mailpool.__file__).parent
LANGUAGES = sorted(path.name for path in (PACKAGE / "locale").iterdir() if path.is_dir())

FUNCTIONS = {
    "_", "gettext", "gettext_lazy", "ngettext", "ngettext_lazy", "pgettext", "pgettext_lazy",
    "npgettext", "npgettext_lazy",
}  # fmt: skip

# What a translation has to keep as it is: placeholders and tags.
KEPT = re.compile(r"%\(\w+\)[-#0 +.\d]*[a-zA-Z]|%[-#0 +.\d]*[a-zA-Z%]|\{\w*\}|</?\w[^>]*>")

# Words of a template that are the same in each language: units, and names.
IN_EVERY_LANGUAGE = {"ms", "s", "OAuth"}

TRANSLATED = re.compile(
    r"{%\s*blocktrans(?:late)?\b.*?{%\s*endblocktrans(?:late)?\s*%}|{%\s*comment\b.*?endcomment\s*%}"
    r"|{%.*?%}|{{.*?}}|{#.*?#}",
    re.DOTALL,
)
# Blocks of the admin's that are names of CSS classes.
CLASSES = re.compile(r"{% block (?:coltype|bodyclass) %}.*?{% endblock %}")
SHOWN_ATTRIBUTES = re.compile(r'\b(?:aria-label|title|alt|placeholder|value)="([^"]*)"')


def catalog(language, folder=PACKAGE):
    path = folder / "locale" / language / "LC_MESSAGES" / "django.po"
    with path.open("rb") as file:
        return read_po(file, locale=language, abort_invalid=True)


def texts(value):
    return list(value) if isinstance(value, (tuple, list)) else [value]


def key(message):
    return (message.context, *texts(message.id))


@pytest.fixture(params=LANGUAGES)
def language(request):
    return request.param


# The catalogs


def test_german_is_there():
    assert "de" in LANGUAGES


def test_everything_is_translated(language):
    messages = [message for message in catalog(language) if message.id]
    assert len(messages) > 700
    missing = [message.id for message in messages if not all(texts(message.string))]
    assert missing == []
    assert [message.id for message in messages if message.fuzzy] == []


def test_placeholders_and_tags_are_kept(language):
    """A placeholder that is lost or misspelled is an error on the page, or a hole in it."""
    wrong = [
        (source, translated)
        for message in catalog(language)
        if message.id
        # The first form may say "one" instead of the number; ours never does.
        for source, translated in zip(texts(message.id), texts(message.string), strict=True)
        if sorted(KEPT.findall(source)) != sorted(KEPT.findall(translated))
        or [source[:1].isspace(), source[-1:].isspace()]
        != [translated[:1].isspace(), translated[-1:].isspace()]
    ]
    assert wrong == []


def test_what_is_compiled_is_what_is_written(language):
    fresh = io.BytesIO()
    write_mo(fresh, catalog(language))
    fresh.seek(0)
    with (PACKAGE / "locale" / language / "LC_MESSAGES" / "django.mo").open("rb") as shipped:
        known, written = (GNUTranslations(file)._catalog for file in (shipped, fresh))
    del known[""], written[""]
    assert known == written, "Run 'django-admin compilemessages' in the folder mailpool."


def test_catalogs_know_each_marked_text_and_no_other(language, tmp_path):
    if shutil.which("xgettext") is None:
        if os.environ.get("MAILPOOL_REQUIRE_GETTEXT"):
            pytest.fail("There is no xgettext: install gettext.")
        pytest.skip("there is no xgettext")
    shutil.copytree(PACKAGE, tmp_path / "mailpool", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-P", "-m", "django", "makemessages", "--locale", language]
    environment = {n: v for n, v in os.environ.items() if n != "DJANGO_SETTINGS_MODULE"}
    subprocess.run(
        command, cwd=tmp_path / "mailpool", env=environment, check=True, timeout=120,
        capture_output=True,
    )  # fmt: skip
    shipped, made = catalog(language), catalog(language, tmp_path / "mailpool")
    advice = "Run 'django-admin makemessages --add-location file' in the folder mailpool."
    known = {key(message) for message in shipped if message.id}
    marked = {key(message) for message in made if message.id}
    assert (marked - known, known - marked) == (set(), set()), advice
    assert dict(shipped.obsolete) == {}, advice


# The sources


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.html")), ids=lambda path: path.stem)
def test_templates_mark_what_they_show(path):
    """What is left without tags, variables and markup is punctuation."""
    text = TRANSLATED.sub(" ", CLASSES.sub(" ", path.read_text()))
    attributes = " ".join(
        value for value in SHOWN_ATTRIBUTES.findall(text) if value not in ("yes", "session")
    )
    text = re.sub(r"<(script|style)\b.*?</\1>", " ", text, flags=re.DOTALL)
    shown = re.sub(r"&\w+;", " ", re.sub(r"<[^>]*>", " ", text))
    words = set(re.findall(r"[A-Za-z]+", f"{shown} {attributes}"))
    assert words - IN_EVERY_LANGUAGE == set()


def calls(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if name in FUNCTIONS:
                yield name, node


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(PACKAGE.rglob("*.py")) if "gettext" in path.read_text()],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_marked_texts_are_whole(path):
    """No f-string and nothing within one, which no catalog has, and no sentence of pieces."""
    tree = ast.parse(path.read_text())
    wrong = []
    marked = set()
    for name, call in calls(tree):
        count = 1 + name.startswith(("n", "p")) + name.startswith("np")
        marked.add(call)
        for text in call.args[:count]:
            if not (isinstance(text, ast.Constant) and isinstance(text.value, str)):
                wrong.append(call.lineno)

    def is_text(node):
        if isinstance(node, ast.BinOp):  # filled in, or added to
            return is_text(node.left) or is_text(node.right)
        return node in marked

    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add) and is_text(node):
            wrong.append(node.lineno)
        if isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Add) and is_text(node.value):
            wrong.append(node.lineno)
        if isinstance(node, ast.JoinedStr):  # in which makemessages does not look
            wrong += [call.lineno for _, call in calls(node)]
    assert wrong == []
