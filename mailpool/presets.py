"""What an OAuth 2 client of the large providers is to have, the same for everybody.

(``server_presets`` has their mail servers.) The pages that they are from:

* https://developers.google.com/identity/protocols/oauth2/web-server
* https://developers.google.com/workspace/gmail/imap/xoauth2-protocol
* https://learn.microsoft.com/en-us/exchange/client-developer/legacy-protocols/how-to-authenticate-an-imap-pop-smtp-application-by-using-oauth
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Preset:
    """Where a provider is asked, and for what."""

    authorization_url: str
    token_url: str
    scopes: str
    parameters: Mapping[str, str] = field(default_factory=dict)
    """What the authorization request has besides."""


_MICROSOFT = "https://login.microsoftonline.com/{}/oauth2/v2.0/{}"

PRESETS = {
    "google": Preset(
        "https://accounts.google.com/o/oauth2/v2/auth",
        "https://oauth2.googleapis.com/token",
        "https://mail.google.com/",
        # Without these Google gives a refresh token the first time only, or never.
        {"access_type": "offline", "prompt": "consent"},
    ),
    # A service account is sent nowhere: it signs for itself.
    "google_service": Preset("", "https://oauth2.googleapis.com/token", "https://mail.google.com/"),
    "microsoft": Preset(
        _MICROSOFT.format("organizations", "authorize"),
        _MICROSOFT.format("organizations", "token"),
        "https://outlook.office.com/SMTP.Send offline_access",
        {"prompt": "select_account"},
    ),
    # Its token URL names the customer's own directory, which nobody else knows.
    "microsoft_app": Preset("", "", "https://outlook.office365.com/.default"),
}
OTHER = Preset("", "", "")


def preset(provider: str) -> Preset:
    """The preset of *provider*; an empty one where there is none."""
    return PRESETS.get(provider, OTHER)
