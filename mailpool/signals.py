"""One signal per outcome of a message, and one for an account that stops working.

Those of messages are sent after the connection is back in the pool.

Receivers get ``message`` (Django's ``EmailMessage``) and ``result`` (a ``MailpoolResult``); the
sender is the ``MailpoolResult`` class.

``credential_needs_attention`` is sent once when an OAuth 2 provider withdraws its permission, with
``credential`` and ``reason`` (plain words); the sender is the ``Credential`` class.

An exception in a receiver is logged and goes no further.
"""

from django.dispatch import Signal

message_sent = Signal()
message_refused = Signal()
message_failed = Signal()
message_unknown = Signal()

credential_needs_attention = Signal()
