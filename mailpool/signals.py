"""One signal per outcome of a message, and some for what operators want to hear of.

Those of messages are sent after the connection is back in the pool, in the thread that called
``send_messages()``, also where several threads have sent.

Receivers get ``message`` (Django's ``EmailMessage``) and ``result`` (a ``MailpoolResult``); the
sender is the ``MailpoolResult`` class.

``credential_needs_attention`` is sent once when an OAuth 2 provider withdraws its permission, with
``credential`` and ``reason`` (plain words); the sender is the ``Credential`` class.

``connection_opened`` and ``connection_closed`` are sent with ``session_id``, ``credential_id``,
``address`` (host and port) and ``tls_version``, a closed one's with ``messages`` (how many it was
used for) and ``reason`` as well; the sender is the ``SessionPool`` class. They come in whatever
thread opens or closes the connection, perhaps while a message waits for it: count or log, and
leave the database alone.

``records_failed`` is sent when delivery records could not be written, with ``count``,
``recipients`` (how many further recipients are missing of records that were written) and
``error``; the sender is the ``DeliveryRecord`` class. The mail itself has gone its way.

An exception in a receiver is logged and goes no further.
"""

from django.dispatch import Signal

message_sent = Signal()
message_refused = Signal()
message_failed = Signal()
message_unknown = Signal()

credential_needs_attention = Signal()

connection_opened = Signal()
connection_closed = Signal()

records_failed = Signal()
