"""Points in time in templates, with their zone."""

from __future__ import annotations

from django import template

from mailpool.moments import moment

register = template.Library()
register.filter("moment", moment)
