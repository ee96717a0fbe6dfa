"""Keys and encryption. Knows nothing of mail.

``keyring`` holds keys, and seals and opens secrets with them; ``keys`` tells which are in force,
and ``provider`` gets them from elsewhere; ``fields`` is the model field that uses all that, and
``written`` what it keeps of a secret until the transaction is over.
"""

from mailpool.secret import Secret
from mailpool.vault.fields import EncryptedQuerySet, EncryptedTextField, note_written
from mailpool.vault.keyring import Keyring, Sealed, generate_key
from mailpool.vault.keys import get_keyring

__all__ = [
    "EncryptedQuerySet",
    "EncryptedTextField",
    "Keyring",
    "Sealed",
    "Secret",
    "generate_key",
    "get_keyring",
    "note_written",
]
