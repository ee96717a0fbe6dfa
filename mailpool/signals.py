"""One signal per outcome, sent after the connection is back in the pool.

Receivers get ``message`` (Django's ``EmailMessage``) and ``result`` (a ``MailpoolResult``); the
sender is the ``MailpoolResult`` class. An exception in a receiver is logged and goes no further.
"""

from django.dispatch import Signal

message_sent = Signal()
message_refused = Signal()
message_failed = Signal()
message_unknown = Signal()
