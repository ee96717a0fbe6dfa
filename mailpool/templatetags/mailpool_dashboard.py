"""The dashboard as a template tag: the admin's own page for an app takes no context of ours."""

from __future__ import annotations

from typing import Any

from django import template

register = template.Library()


@register.inclusion_tag("admin/mailpool/dashboard.html", takes_context=True)
def mailpool_dashboard(context: template.Context) -> dict[str, Any]:
    # Not before: Django loads the tags of all apps, also in projects without its admin.
    from mailpool.admin import dashboard

    return dashboard.context(context["request"])
