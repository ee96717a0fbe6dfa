"""What tenants do with accounts of their own: verify, test, revoke. For views, and for an API.

Nothing here checks whose credential it is, and nothing counts attempts: ``mailpool.views`` does.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Literal

from django.db import router, transaction

from mailpool.delivery import session_params
from mailpool.events import event
from mailpool.exceptions import MailpoolError
from mailpool.models import Credential
from mailpool.verification import REACHING, Report, send_test_message, verify_credential

logger = logging.getLogger("mailpool")

State = Literal["active", "unverified", "revoked", "suspended"]

# Whatever a credential has, of this login or left from another one. An access token goes with the
# grant that it is of.
SECRETS = ("password", "refresh_token", "client_key")

VERIFY_SECONDS = 15.0
REACH_SECONDS = 5.0


def state(credential: Credential) -> State:
    """How *credential* is, for its tenant.

    ``unverified``: inactive until it is verified. ``revoked``: without what it logs in with, until
    a password is entered: that, the permission of an OAuth 2 provider, or the private key of its
    certificate. ``suspended``: the operator switched its server off.
    """
    if credential.is_oauth and not credential.is_connected:
        return "revoked"
    if credential.uses_password and not credential.has_password:
        return "revoked"
    if credential.client_certificate and not credential.has_client_key:
        return "revoked"
    if not credential.server.is_active:
        return "suspended"
    return "active" if credential.is_active else "unverified"


def verify(
    credential: Credential, *, seconds: float = VERIFY_SECONDS, reach: float = REACH_SECONDS
) -> Report:
    """Verify *credential*, and activate it if every step went through. The report is for tenants.

    Takes *seconds* at the most. A server that is not reached within *reach* seconds has not
    been reached, and that is told no earlier: how long it took would tell why. If somebody changed
    the credential meanwhile, what was verified is no longer what there is, and it stays as it is.
    """
    started = time.monotonic()
    report = verify_credential(credential, seconds=seconds, reach=reach)
    failure = report.failure
    if failure is None:
        _activate(credential)
    elif failure.key in REACHING:
        time.sleep(max(0.0, started + min(reach, seconds) - time.monotonic()))
    logger.info(
        "A tenant verified credential %s at %s: %s",
        credential.pk,
        report.address,
        f"failed at {failure.key!r}: {failure.detail}" if failure else "ok",
        extra=event(
            "mailpool.tenant_verified",
            credential=credential.pk,
            ok=failure is None,
            step=failure.key if failure else None,
        ),
    )
    return report.for_tenants()


def _activate(verified: Credential) -> None:
    using = router.db_for_write(Credential)
    with transaction.atomic(using=using):
        # Alone: databases differ in what they can lock of a join.
        rows = Credential.objects.using(using).select_for_update()
        row = rows.filter(pk=verified.pk).first()
        if row is None or not _is_the_same(row, verified):
            return
        if not row.is_active:
            row.is_active = True
            row.save(update_fields=["is_active"])
    verified.is_active = True


def _is_the_same(row: Credential, verified: Credential) -> bool:
    """Whether all that a verification looks at is still as it was."""
    try:
        now, then = session_params(row), session_params(verified)
    except MailpoolError:  # revoked, for one
        return False
    return (now, row.default_from) == (then, verified.default_from)


@dataclass(frozen=True, slots=True)
class Trial:
    """What became of a test message: the verification ahead of it, and whether it was sent."""

    report: Report
    sent: bool = False


def send_test(
    credential: Credential,
    recipient: str,
    *,
    seconds: float = VERIFY_SECONDS,
    reach: float = REACH_SECONDS,
) -> Trial:
    """Send a test message to *recipient*, if *credential* is active and can be verified just now.

    Verified first, so that a server that can't be reached looks as it does there. Takes twice
    *seconds* at the most. ``InvalidMessage`` if *recipient* is no address.
    """
    report = verify(credential, seconds=seconds, reach=reach)
    if not report.ok:
        return Trial(report)
    result = send_test_message(credential, recipient, deadline=seconds)
    return Trial(report, result.status == "sent")


def revoke(credential: Credential) -> None:
    """Remove every secret of *credential* from the database and deactivate it; nothing is sent.

    That is its password, the tokens of an OAuth 2 provider, and the private key of its certificate.
    Its connections are closed: in this process now, in others at the next send at the latest.
    """
    for secret in SECRETS:
        setattr(credential, secret, "")
    credential.is_active = False
    credential.save(update_fields=[*SECRETS, "is_active"])
