"""What leaves is what Django renders, made with less effort."""

from __future__ import annotations

import email.policy
import re
from email.header import decode_header, make_header
from email.utils import getaddresses

import django
import pytest
from django.core.mail import EmailMessage, EmailMultiAlternatives

from mailpool.rendering import _Headers, _with_utf8_headers, render
from tests.factories import CredentialFactory

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.skipif(django.VERSION < (6, 0), reason="before, Django renders by itself"),
]
HEADERS = {"Date": "Tue, 24 Nov 2026 10:00:00 +0000", "Message-ID": "<1@example.com>"}


def messages():
    plain = EmailMessage("Grüße", "Hällo\n" * 3, "Jörg <a@example.com>", ["b@example.com"])
    plain.extra_headers = {**HEADERS, "X-Own": "one", "List-Unsubscribe": "<https://example.com>"}
    yield plain
    rich = EmailMultiAlternatives("Hi", "text", "a@example.com", ["b@example.com"], headers=HEADERS)
    rich.cc, rich.reply_to = ["C <c@example.com>"], ["d@example.com"]
    rich.attach_alternative("<p>text</p>", "text/html")
    rich.attach("a.txt", "attached", "text/plain")
    yield rich
    # The same value under two names, and one that has to be folded.
    long = f"{'Ümlaut and more ' * 8} <a@example.com>"
    again = EmailMessage("a@example.com", "text", long, ["b@example.com"], headers=HEADERS)
    again.reply_to = [long]
    yield again
    abroad = EmailMessage("Hi", "text", "Jörg <jörg@exämple.com>", ["b@example.com"])
    abroad.extra_headers = HEADERS
    yield abroad


@pytest.mark.parametrize("message", [*messages()], ids=["plain", "rich", "again", "abroad"])
def test_content_is_what_django_renders(message):
    def without_boundaries(content):
        return re.sub(rb"=+\d+==", b"=boundary==", content)

    policy = email.policy.SMTP
    if "jörg@" in message.from_email:
        policy = email.policy.SMTPUTF8
    for _ in range(2):  # the first use of a header's class, and later ones
        ours = render(message, CredentialFactory()).content
        django_s = message.message(policy=policy).as_bytes()
        assert without_boundaries(ours) == without_boundaries(django_s)


def test_headers_that_repeat_are_made_once_and_others_not_kept():
    headers = _Headers()
    once = headers("From", "a@example.com")
    assert headers("From", "a@example.com") is once
    for number in range(3000):
        headers("From", f"a{number}@example.com")
    assert headers("From", "a@example.com") is not once  # bounded

    for name, value in [
        ("To", "b@example.com"),
        ("Message-ID", "<a@example.com>"),
        ("Content-Type", 'multipart/mixed; boundary="=1="'),
        ("From", f"{'a' * 300} <a@example.com>"),
    ]:
        assert headers(name, value) is not headers(name, value)


def test_a_header_that_repeats_is_folded_for_each_policy():
    header = _Headers()("From", f"{'Ümlaut ' * 8} <a@example.com>")
    ascii_only = header.fold(policy=email.policy.SMTP)
    assert header.fold(policy=email.policy.SMTPUTF8).count("Ü") == 8
    assert header.fold(policy=email.policy.SMTP) == ascii_only
    assert ascii_only.isascii()


FAKE = "boss@bank.example,"
LONG = "and a name that is so long that it does not fit on one line of the header"


@pytest.mark.parametrize(
    "name",
    [
        f'"{FAKE} {LONG}"',
        f'"{FAKE} {LONG.replace(" ", "-")}"',
        f'"<boss@bank.example>, Bööb {LONG}"',
        f'"{LONG} {FAKE}"',
        "=?utf-8?q?boss=40bank=2Eexample=2C?=",
        "=?utf-8?q?=3Cboss=40bank=2Eexample=3E=2C_Bob?=",
        f"=?utf-8?q?boss=40bank=2Eexample=2C_{LONG.replace(' ', '_')}?=",
    ],
)
@pytest.mark.parametrize("field", ["From", "Reply-To", "To"])
def test_a_name_never_becomes_an_address(name, field):
    """Quotes around it are left out by many releases of Python where it is folded or decoded."""
    given = f"{name} <bob@example.com>"
    message = EmailMessage("hello", "text", "bob@example.com", ["bob@example.com"])
    if field == "From":
        message.from_email = given
    else:
        setattr(message, field.lower().replace("-", "_"), [given])
    content = render(message, CredentialFactory()).content.decode()
    found = re.search(rf"(?m)^{field}: ([^\r\n]*(?:\r\n [^\r\n]*)*)", content)[1]
    assert all(len(line) <= 100 for line in found.split("\r\n"))
    found = found.replace("\r\n", "")
    # As any other program reads it that knows RFC 5322.
    assert [address for _, address in getaddresses([found])] == ["bob@example.com"]
    assert "boss@bank.example" in str(make_header(decode_header(found)))


@pytest.mark.parametrize("sender", ["bob@example.com", "jörg@example.com"])
@pytest.mark.parametrize(
    "given",
    [
        f'"{FAKE} {LONG}": bob@example.com, Mary <mary@example.com>;',
        f'"{FAKE} Bööb {LONG}": bob@example.com, Mary <mary@example.com>;',
        f'"Bööb {LONG}, <boss@bank.example>": bob@example.com;, mary@example.com',
    ],
)
def test_nor_does_the_name_of_a_group(given, sender):
    message = EmailMessage("hello", "text", sender, ["a@example.com"], reply_to=[given])
    content = render(message, CredentialFactory()).content.decode()
    found = re.search(r"(?m)^Reply-To: ([^\r\n]*(?:\r\n [^\r\n]*)*)", content)[1]
    addresses = [address for _, address in getaddresses([found.replace("\r\n", "")])]
    assert addresses == ["bob@example.com", "mary@example.com"]
    if sender.isascii():
        assert found.isascii()


def test_nor_where_the_headers_of_an_older_django_are_written_anew():
    given = f'"{FAKE} {LONG}" <jörg@example.com>'
    message = EmailMessage("hello", "text", given, ["a@example.com"])
    content = _with_utf8_headers(message, b"From: x@example.com\r\n\r\ntext\r\n").decode()
    found = re.search(r"(?m)^From: ([^\r\n]*(?:\r\n [^\r\n]*)*)", content)[1].replace("\r\n", "")
    assert [address for _, address in getaddresses([found])] == ["jörg@example.com"]
