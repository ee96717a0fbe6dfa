"""The dashboard as a template tag: the admin's own page for an app takes no context of ours."""

from __future__ import annotations

from typing import Any

from django import template

from mailpool.admin import dashboard

register = template.Library()


@register.inclusion_tag("admin/mailpool/dashboard.html", takes_context=True)
def mailpool_dashboard(context: template.Context) -> dict[str, Any]:
    return dashboard.context(context["request"])
