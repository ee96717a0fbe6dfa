"""All contestants in one project."""

from __future__ import annotations

import importlib.util
import os
import tempfile

_folder = os.environ.get("BENCHMARK_DIR") or tempfile.gettempdir()

SECRET_KEY = "only for the benchmark"
USE_TZ = True
DATABASES = {
    "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": f"{_folder}/benchmark.sqlite3"}
}
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "mailpool",
    *(app for app in ("post_office", "mailer") if importlib.util.find_spec(app)),
]
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
MAILPOOL = {"ENCRYPTION_KEYS": ["b" * 43 + "="], "MAX_SESSIONS": 600, "RECORDS": "off"}
POST_OFFICE = {
    "BACKENDS": {"default": "django.core.mail.backends.smtp.EmailBackend"},
    "THREADS_PER_PROCESS": 1,
}
EMAIL_BACKEND = "mailpool.backends.EmailBackend"
MAILER_EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
MAILER_EMPTY_QUEUE_SLEEP = 0
EMAIL_HOST = "localhost"
EMAIL_USE_TLS = True
