"""Who sends mail, in projects that have no such model of their own."""

from __future__ import annotations

import uuid

from django.db import models
from django.utils.translation import gettext_lazy as _

from mailpool import conf
from mailpool.validators import validate_name


class Tenant(models.Model):
    """A customer, brand or department; used where ``MAILPOOL_TENANT_MODEL`` names no other."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    slug = models.SlugField(
        _("slug"),
        max_length=100,
        unique=True,
        help_text=_("The short name that code uses: use_tenant('acme')."),
    )
    name = models.CharField(_("name"), max_length=200, validators=[validate_name])
    is_active = models.BooleanField(
        _("active"), default=True, help_text=_("An inactive tenant sends nothing.")
    )

    class Meta:
        swappable = conf.TENANT_MODEL_SETTING
        ordering = ("name",)
        verbose_name = _("tenant")
        verbose_name_plural = _("tenants")

    def __str__(self) -> str:
        return self.name
