"""Settings of the tests. Other databases by URL: DATABASE_URL=postgres://… pytest"""

import os

import django
import environ

env = environ.Env()

SECRET_KEY = "tests"
DEBUG = False
USE_TZ = True
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "tests.urls"
DATABASES = {
    "default": env.db(
        "DATABASE_URL",
        default="sqlite:///" + os.path.join(os.path.dirname(__file__), "test.sqlite3"),
    )
}
if DATABASES["default"]["ENGINE"].endswith("sqlite3"):
    # Threads of a test have to see the same database, which one in memory can't give.
    DATABASES["default"]["TEST"] = {"NAME": DATABASES["default"]["NAME"]}
    DATABASES["default"]["OPTIONS"] = {"timeout": 30, "transaction_mode": "IMMEDIATE"}
if DATABASES["default"]["ENGINE"].endswith("mysql"):
    DATABASES["default"]["OPTIONS"] = {"charset": "utf8mb4"}

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "mailpool",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
if django.VERSION >= (6, 0):
    # Without effect but for tests that set SECURE_CSP.
    MIDDLEWARE += ["django.middleware.csp.ContentSecurityPolicyMiddleware"]
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
STATIC_URL = "static/"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]

# With MAILERS where Django has it (6.1), unless the run is about the older setting.
if django.VERSION >= (6, 1) and env.bool("TEST_MAILERS", default=True):
    MAILERS = {"default": {"BACKEND": "mailpool.backends.EmailBackend"}}
else:
    EMAIL_BACKEND = "mailpool.backends.EmailBackend"

MAILPOOL = {
    "ENCRYPTION_KEYS": ["bWFpbHBvb2wgdGVzdCBrZXksIG5vdCBhIHNlY3JldCE="],
    "EHLO_HOSTNAME": "client.test",
}
