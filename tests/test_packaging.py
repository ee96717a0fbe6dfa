"""What people get who install the package."""

from __future__ import annotations

import subprocess
import sys
from hashlib import sha256
from importlib.metadata import requires
from importlib.resources import files

import mailpool


def test_smtp_client_does_not_need_django():
    code = "import mailpool.smtp, sys; assert 'django' not in sys.modules, 'Django was imported'"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_public_names():
    assert set(mailpool.__all__) == {"close_connections", "stats", "use_tenant"}
    assert all(callable(getattr(mailpool, name)) for name in mailpool.__all__)


def test_everything_is_in_the_package():
    package = files("mailpool")
    for name in (
        "py.typed",
        "templates/admin/mailpool/verify.html",
        "templates/mailpool/credential_form.html",
        "templates/admin/mailpool/app_index.html",
        "static/mailpool/admin.css",
        "static/mailpool/tenant.css",
        "static/mailpool/dashboard.js",
        "static/mailpool/vendor/uplot/uPlot.iife.min.js",
        "migrations/0001_initial.py",
        "locale/de/LC_MESSAGES/django.mo",
        "locale/de/LC_MESSAGES/django.po",
    ):
        assert package.joinpath(*name.split("/")).is_file(), name


# SHA-256 of the files of uPlot 1.6.32, as its authors have published them.
UPLOT = {
    "uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    "uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
    "LICENSE": "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
}


def test_the_chart_library_is_what_was_published():
    folder = files("mailpool").joinpath("static", "mailpool", "vendor", "uplot")
    found = {each.name: sha256(each.read_bytes()).hexdigest() for each in folder.iterdir()}
    assert found.pop("README.md")
    assert found == UPLOT


def test_few_dependencies():
    runtime = [line for line in requires("mailpool") if "extra ==" not in line]
    assert {line.split(">")[0].lower() for line in runtime} == {
        "django",
        "cryptography",
        "django-environ",
    }


def test_templates_work_in_a_project_without_the_admin():
    """Django loads the template tags of all installed apps when it makes its engine."""
    code = """
import django
from django.conf import settings
engine = {"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}
apps = ["django.contrib.auth", "django.contrib.contenttypes", "mailpool"]
settings.configure(INSTALLED_APPS=apps, TEMPLATES=[engine], SECRET_KEY="x")
django.setup()
from django.template import Template, Context
print(Template("works").render(Context()))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=60, capture_output=True, text=True
    )
    assert done.stdout == "works\n"
