"""The Django app."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db.models.signals import post_migrate
from django.utils.translation import gettext_lazy as _

from mailpool import conf


def _register_metrics() -> None:
    try:
        wanted = conf.metrics_options() is not None
    except ImproperlyConfigured:
        return  # a check says it, and mail goes out all the same
    if wanted and find_spec("prometheus_client") is not None:
        from mailpool import prometheus

        prometheus.register_as_configured()


class MailpoolConfig(AppConfig):
    """Registers checks, and follows changes of credentials and servers."""

    name = "mailpool"
    verbose_name = _("Mail")
    default_auto_field = "django.db.models.BigAutoField"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        # Django's swappable models read their setting by name, from migrations too, and know no
        # default for a setting that is not their own.
        if not hasattr(settings, conf.TENANT_MODEL_SETTING):
            setattr(settings, conf.TENANT_MODEL_SETTING, conf.tenant_model())

    def ready(self) -> None:
        from mailpool import checks, invalidation, marker  # noqa: F401

        conf.require_tenant_model()
        _register_metrics()
        post_migrate.connect(marker.mark_new, sender=self, dispatch_uid="mailpool.marker")
