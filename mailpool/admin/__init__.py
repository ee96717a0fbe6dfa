"""The admin, one file per room. Registered when Django discovers it.

``TenantAdminMixin`` and ``CredentialInline`` are for the admin of a project's own tenant model.
"""

from mailpool import conf

conf.require_tenant_model()  # the forms below need it, and the admin may be loaded before the app

from mailpool.admin.audit import AuditEntryAdmin  # noqa: E402
from mailpool.admin.credentials import CredentialAdmin, CredentialInline, TenantAdminMixin  # noqa: E402
from mailpool.admin.oauth import OAuthClientAdmin  # noqa: E402
from mailpool.admin.records import DeliveryRecordAdmin  # noqa: E402
from mailpool.admin.senders import SenderAdmin  # noqa: E402
from mailpool.admin.servers import MailServerAdmin  # noqa: E402
from mailpool.admin.tenants import TenantAdmin  # noqa: E402

__all__ = [
    "AuditEntryAdmin",
    "CredentialAdmin",
    "CredentialInline",
    "DeliveryRecordAdmin",
    "MailServerAdmin",
    "OAuthClientAdmin",
    "SenderAdmin",
    "TenantAdmin",
    "TenantAdminMixin",
]
