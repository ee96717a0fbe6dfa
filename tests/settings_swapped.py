"""A project whose tenants are its own shops, with whole numbers as keys and a code as the slug."""

from tests.settings import *  # noqa: F403
from tests.settings import INSTALLED_APPS, MAILPOOL

INSTALLED_APPS = [*INSTALLED_APPS, "tests.swapped"]
MAILPOOL_TENANT_MODEL = "swapped.Shop"
MAILPOOL = {**MAILPOOL, "TENANT_SLUG_FIELD": "code"}
