"""Which site a database belongs to."""

from __future__ import annotations

from typing import ClassVar

from django.db import models
from django.utils.translation import gettext_lazy as _


class SiteMarker(models.Model):
    """The one row that says which site this database belongs to; a copy has it as well."""

    id = models.PositiveSmallIntegerField(primary_key=True, default=1, editable=False)
    name = models.CharField(_("name"), max_length=100)

    class Meta:
        default_permissions = ()  # nobody edits it: ``mailpool_scrub`` does
        verbose_name = _("site marker")
        verbose_name_plural = _("site markers")
        constraints: ClassVar = [
            models.CheckConstraint(condition=models.Q(id=1), name="mailpool_sitemarker_one_row"),
        ]

    def __str__(self) -> str:
        return self.name
