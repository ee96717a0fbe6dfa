"""``mailpool.testing``: which tenant and credential a message would have used."""

from __future__ import annotations

import threading

import pytest
from django.conf import settings
from django.core import mail
from django.core.mail import EmailMessage, send_mail

import mailpool
from mailpool.delivery import Job, resolve
from mailpool.exceptions import NoRoute
from mailpool.routing import Router
from mailpool.testing import EmailBackend
from tests.factories import CredentialFactory


def test_fixture_tells_tenant_and_credential(mailpool_outbox):
    credential = CredentialFactory(tenant__slug="bob")
    with mailpool.use_tenant("bob"):
        assert send_mail("hello", "text", "bob@example.com", ["a@example.com"]) == 1
    (captured,) = mailpool_outbox
    assert captured.tenant == credential.tenant
    assert captured.credential == credential
    assert captured.username == credential.username
    assert captured.envelope.recipients == ("a@example.com",)
    assert captured.message.mailpool_result.status == "sent"
    assert mailpool_outbox.of(credential.tenant) == [captured]
    assert mailpool_outbox.of("bob") == [captured]
    assert mailpool_outbox.of("mary") == mailpool_outbox.of(None) == []


def test_errors_of_routing_are_real(mailpool_outbox):
    with mailpool.use_tenant("nobody"), pytest.raises(NoRoute, match="nobody"):
        send_mail("hello", "text", "bob@example.com", ["a@example.com"])
    assert mailpool_outbox == []


@pytest.mark.skipif(not hasattr(settings, "MAILERS"), reason="about MAILERS")
def test_options_of_the_projects_mailers_are_kept(db, monkeypatch):
    from django.test.utils import _TestState

    from mailpool.testing import capture

    credential = CredentialFactory(tenant__slug="acme")
    project = {
        "default": {"BACKEND": "mailpool.backends.EmailBackend"},
        "acme": {"BACKEND": "mailpool.backends.EmailBackend", "OPTIONS": {"tenant": "acme"}},
        "other": {"BACKEND": "django.core.mail.backends.dummy.EmailBackend"},
    }
    monkeypatch.setattr(_TestState.saved_data, "mailers", project, raising=False)
    with capture() as outbox:
        EmailMessage("hi", "text", "x@example.com", ["a@example.com"]).send(using="acme")
        EmailMessage("hi", "text", "x@example.com", ["a@example.com"]).send(using="other")
    assert [captured.credential for captured in outbox] == [credential]
    assert mail.outbox == []


def test_mail_from_threads_is_captured(db, mailpool_outbox):
    credential = CredentialFactory(tenant__slug="bob")
    message = EmailMessage("hello", "text", "bob@example.com", ["a@example.com"])
    with mailpool.use_tenant("bob"):
        jobs = [Job(message)]
        resolve(jobs, Router().resolve)
    thread = threading.Thread(target=EmailBackend.transmit, args=(jobs, None, None))
    thread.start()
    thread.join()
    assert [captured.credential for captured in mailpool_outbox] == [credential]
