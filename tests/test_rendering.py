"""What leaves is what Django renders, made with less effort."""

from __future__ import annotations

import email.policy
import re

import django
import pytest
from django.core.mail import EmailMessage, EmailMultiAlternatives

from mailpool.rendering import render
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


@pytest.mark.parametrize("message", [*messages()], ids=["plain", "rich"])
def test_content_is_what_django_renders(message):
    def without_boundaries(content):
        return re.sub(rb"=+\d+==", b"=boundary==", content)

    for _ in range(2):  # the first use of a header's class, and later ones
        ours = render(message, CredentialFactory()).content
        django_s = message.message(policy=email.policy.SMTP).as_bytes()
        assert without_boundaries(ours) == without_boundaries(django_s)
