"""A small project that uses mailpool. The part that matters is at the end."""

import os
import secrets
from pathlib import Path

import django
import environ

from mailpool.vault.keyring import generate_key

BASE_DIR = Path(__file__).resolve().parent.parent
# Where the database and .env are kept; another place for a second, separate demo.
STATE_DIR = Path(os.environ.get("EXAMPLE_STATE_DIR", BASE_DIR / "var"))
STATE_DIR.mkdir(parents=True, exist_ok=True)

env = environ.Env()
ENV_FILE = STATE_DIR / ".env"
if not ENV_FILE.exists():
    # First run. A real project has these made once, and kept apart from the database.
    ENV_FILE.touch(mode=0o600)
    ENV_FILE.write_text(
        f"SECRET_KEY={secrets.token_urlsafe(48)}\n"
        f"MAILPOOL_ENCRYPTION_KEYS={generate_key()}\n"
        f"ADMIN_PASSWORD={secrets.token_urlsafe(9)}\n"
    )
env.read_env(ENV_FILE, overwrite=True)  # this project's own, whatever the shell has exported

SECRET_KEY = env("SECRET_KEY")
ADMIN_PASSWORD = env("ADMIN_PASSWORD")
DEBUG = False
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
ROOT_URLCONF = "example.urls"
WSGI_APPLICATION = None
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": STATE_DIR / "db.sqlite3",
        "OPTIONS": {"timeout": 20, "transaction_mode": "IMMEDIATE"},
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
TIME_ZONE = "UTC"
STATIC_URL = "/static/"
LOGIN_URL = "login"
LOGIN_REDIRECT_URL = "mailpool_credential_list"
LOGOUT_REDIRECT_URL = "compose"
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    }
]

# What a project needs for mailpool ------------------------------------------------------------

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "demo",  # ahead of mailpool, whose templates it overrides
    "mailpool",
]

if django.VERSION >= (6, 1):
    MAILERS = {"default": {"BACKEND": "mailpool.backends.EmailBackend"}}
else:
    EMAIL_BACKEND = "mailpool.backends.EmailBackend"

MAILPOOL = {
    "ENCRYPTION_KEYS": env.list("MAILPOOL_ENCRYPTION_KEYS"),  # newest first
    # For the demo alone: the mail host that its tenants enter is on this machine. Leave this out,
    # and what your tenants enter has to be at a public address.
    "TENANT_SERVER_NETWORKS": ["127.0.0.0/8", "::1/128"],
    "TENANT_VERIFY_RATE": "60/hour",
    # Codes that are mailed, to the demo's own host; looking into DNS needs mailpool[dns].
    "VERIFY_SENDERS": True,  # tenants enter addresses of their own, and show that they are theirs
}
SILENCED_SYSTEM_CHECKS = ["mailpool.W040"]  # that mailpool[dns] is missing, at each command
