"""Whose a sender is: proven by a code that is mailed to it, by DNS, or by an operator's word.

Asked for where ``MAILPOOL["VERIFY_SENDERS"]`` is on. What is proven is that one tenant owns one
address; ``models.scopes.proof_of`` is how that is stored, and routing compares it at each send.

Nothing here checks who asks, and only the mailings of codes are counted: the pages do the rest.
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Iterable
from datetime import timedelta
from typing import Any, Literal

from django.apps import apps
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.mail import EmailMessage
from django.db import router, transaction
from django.db.models import F
from django.utils import timezone
from django.utils.crypto import constant_time_compare, salted_hmac
from django.utils.translation import gettext as _

from mailpool import attempts, audit, conf, delivery, txt_records
from mailpool.addresses import parse_mailbox
from mailpool.events import event
from mailpool.exceptions import InvalidMessage, OwnershipError
from mailpool.models import Sender
from mailpool.models.scopes import proof_of
from mailpool.models.senders import SenderQuerySet
from mailpool.routing import Router
from mailpool.text import one_line

logger = logging.getLogger("mailpool")

State = Literal["proven", "sent", "unproven"]

CODE_DIGITS = 8
CODE_MINUTES = 30
CODE_TRIES = 5
SEND_SECONDS = 20.0

# Below the domain itself: an underscore is in no host name, so that where everybody may have a
# name below a domain (bob.pages.example), nobody has this one.
RECORD_NAME = "_mailpool"
RECORD_VALUE = "mailpool-verification="


def state(sender: Sender) -> State:
    """How far *sender* is; ``sent``: a code is on its way and can be entered."""
    if sender.is_proven:
        return "proven"
    until = sender.code_until
    is_open = until is not None and timezone.now() < until and sender.code_tries < CODE_TRIES
    return "sent" if sender.code_digest and is_open else "unproven"


def takes_code(sender: Sender) -> bool:
    """Whether a code can be mailed to *sender*: never for all of a domain."""
    return _recipient(sender) is not None


def send_code(sender: Sender) -> None:
    """Mail a new code to *sender*, with the site's own account. The one before is void.

    ``OwnershipError`` where that is not possible, ``TooManyAttempts`` where it was done too often.
    """
    scope, recipient = _scope(sender), _recipient(sender)
    if recipient is None:
        raise OwnershipError(_("A domain gets no mail. Prove it by DNS."))
    attempts.count_mailing(scope, sender.address)
    code = f"{secrets.randbelow(10**CODE_DIGITS):0{CODE_DIGITS}}"
    digest = _digest(sender, scope, code)
    stored = _row(sender).note(
        code_digest=digest,
        code_until=timezone.now() + timedelta(minutes=CODE_MINUTES),
        code_tries=0,
    )
    if not stored:
        raise _changed()
    result = delivery.deliver(
        [_mail(recipient, code)], Router().resolve_of_site, deadline=SEND_SECONDS
    )[0]
    audit.note(
        audit.Action.SENDER_CODE_SENT, sender.credential, f"{sender.address}: {result.status}"
    )
    if result.status in ("refused", "failed"):  # unknown: it may arrive
        _row(sender).filter(code_digest=digest).note(code_digest="")
        logger.error(
            "No code could be sent to a sender: %s",
            one_line(str(result.error or result.reply)),
            extra=event(
                "mailpool.code_not_sent",
                credential=sender.credential_id,
                status=result.status,
                code=result.code,
                error=result.error,
            ),
        )
        raise OwnershipError(
            _("The code could not be sent. Check the address, or try again later.")
        )


def enter_code(sender: Sender, code: str) -> None:
    """Prove *sender* by the *code* that was mailed to it. ``OwnershipError`` if it is not that."""
    scope = _scope(sender)
    open_codes = _row(sender).filter(
        code_digest__gt="", code_until__gt=timezone.now(), code_tries__lt=CODE_TRIES
    )
    # Counted ahead of the comparison, in one statement: so many tries at once are so many tries.
    if not open_codes.note(code_tries=F("code_tries") + 1):
        raise OwnershipError(
            _("There is no code to be entered any more. Have another one sent to the address.")
        )
    stored = _row(sender).values_list("code_digest", flat=True).first() or ""
    given = _digest(sender, scope, re.sub(r"[\s-]", "", code))
    if not constant_time_compare(stored, given):
        raise OwnershipError(_("This is not the code that was sent. Look at the latest message."))
    _prove(sender, scope, Sender.Way.CODE, code_digest=stored)


def dns_record(sender: Sender) -> tuple[str, str]:
    """Name and value of the TXT record that proves *sender*'s domain to be its tenant's.

    The value is of this tenant and domain: published for one, it proves nothing to another.
    """
    scope = sender.credential.get_scope()
    return _record_name(sender), _record_values(_domain(sender), scope)[0]


def check_dns(sender: Sender) -> None:
    """Prove *sender*, a domain or an address of it, by DNS. ``OwnershipError`` if it isn't."""
    scope, domain = _scope(sender), _domain(sender)
    try:
        found = txt_records.look_up(_record_name(sender))
    except (txt_records.LookupFailed, ImproperlyConfigured) as error:
        logger.error(
            "No proof could be looked for in DNS: %s",
            one_line(str(error)),
            extra=event("mailpool.dns_failed", credential=sender.credential_id, error=error),
        )
        raise OwnershipError(_("DNS gives no answer right now. Try again later.")) from None
    values = [value.encode() for value in _record_values(domain, scope)]
    if not any(record.strip() in values for record in found):
        raise OwnershipError(
            _("The record was not found. It may take some hours until a new one is seen.")
        )
    _prove(sender, scope, Sender.Way.DNS)


def confirm(senders: Iterable[Sender]) -> int:
    """Take the operator's word for *senders*, or the code's that calls this. How many were new."""
    count = 0
    with transaction.atomic(using=router.db_for_write(Sender)):
        for sender in senders:
            scope = _scope(sender)
            if sender.proof != proof_of(scope, sender.address):
                _prove(sender, scope, Sender.Way.OPERATOR)
                count += 1
    return count


def withdraw(senders: Iterable[Sender]) -> int:
    """Let *senders* be proven anew. How many had been."""
    count = 0
    with transaction.atomic(using=router.db_for_write(Sender)):
        for sender in senders:
            if _row(sender).exclude(proof="").void():
                audit.record(audit.Action.SENDER_WITHDRAWN, sender.credential, sender.address)
                count += 1
    return count


def unproven() -> SenderQuerySet:
    """The senders of accounts in use that count for nothing, since nobody has proven them.

    None where ``VERIFY_SENDERS`` is off.
    """
    senders = SenderQuerySet(Sender)
    if not conf.verifies_senders():
        return senders.none()
    in_use = {"credential__is_active": True, "credential__server__is_active": True}
    tenants = apps.get_model(conf.tenant_model())
    if any(found.name == "is_active" for found in tenants._meta.concrete_fields):
        in_use["credential__tenant__is_active"] = True
    return senders.of_tenants(proven=False).filter(**in_use)


def _prove(sender: Sender, scope: str, way: Sender.Way, **only: Any) -> None:
    proof = proof_of(scope, sender.address)
    with transaction.atomic(using=router.db_for_write(Sender)):
        rows = _row(sender).filter(**only)
        if not rows.void(proof=proof, proven_by=way.value, proven_at=timezone.now()):
            raise _changed()
        audit.record(
            audit.Action.SENDER_PROVEN, sender.credential, f"{sender.address}: by {way.value}"
        )
    sender.refresh_from_db()


def _row(sender: Sender) -> SenderQuerySet:
    """The row of *sender*, if the address is still that one."""
    rows = SenderQuerySet(Sender, using=router.db_for_write(Sender))
    return rows.filter(pk=sender.pk, address=sender.address)


def _scope(sender: Sender) -> str:
    scope = sender.get_scope()
    if not scope:
        raise OwnershipError(_("The site's own senders need no proof."))
    return scope


def _changed() -> OwnershipError:
    return OwnershipError(_("Somebody has changed this sender meanwhile. Try again."))


def _digest(sender: Sender, scope: str, code: str) -> str:
    """What is stored of a code: worthless without ``SECRET_KEY``, in another row or address."""
    bound = f"{sender.pk} {scope} {sender.address} {code}"
    return salted_hmac("mailpool.ownership.code", bound, algorithm="sha256").hexdigest()


def _recipient(sender: Sender) -> str | None:
    """The one mailbox that *sender* is, as an envelope has it."""
    try:
        mailbox = parse_mailbox(sender.address)
    except InvalidMessage:
        return None
    # What is read in another way than it is stored would be mail to somebody else.
    return mailbox.addr_spec if mailbox.domain and mailbox.key == sender.address else None


def _mail(recipient: str, code: str) -> EmailMessage:
    # Nothing in it is a tenant's to choose: it would be a way to mail people as this site.
    half = len(code) // 2
    body = _(
        "Somebody wants to send mail as this address, and has to show that it is theirs.\n\n"
        "The code is: %(code)s\n\n"
        "It is valid for %(minutes)d minutes. If it was not you who asked for it, do nothing, and "
        "give it to nobody: without the code nothing is sent as this address."
    ) % {"code": f"{code[:half]} {code[half:]}", "minutes": CODE_MINUTES}
    return EmailMessage(
        _("Your code"), body, to=[recipient], headers={"Auto-Submitted": "auto-generated"}
    )


def _domain(sender: Sender) -> str:
    return str(sender.address).rpartition("@")[2]


def _record_name(sender: Sender) -> str:
    return f"{RECORD_NAME}.{_domain(sender)}"


def _record_values(domain: str, scope: str) -> list[str]:
    """The newest first; with a former ``SECRET_KEY`` as well, as Django does."""
    return [
        RECORD_VALUE
        + salted_hmac(
            "mailpool.ownership.dns", f"{scope} {domain}", secret=key, algorithm="sha256"
        ).hexdigest()[:40]
        for key in (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS)
    ]
