"""System checks: what can be seen to be wrong before the first message, each with its cure.

No message repeats a value: it may be a key or a password that was put into the wrong place.
"""

from mailpool.checks.backend import BACKEND, check_backend
from mailpool.checks.database import check_codes, check_marker, check_oauth
from mailpool.checks.keys import check_keys, check_provided_keys, check_stored_secrets
from mailpool.checks.settings import MIDDLEWARE, check_settings

__all__ = [
    "BACKEND",
    "MIDDLEWARE",
    "check_backend",
    "check_codes",
    "check_keys",
    "check_marker",
    "check_oauth",
    "check_provided_keys",
    "check_settings",
    "check_stored_secrets",
]
