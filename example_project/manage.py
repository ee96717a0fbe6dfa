#!/usr/bin/env python
"""Django's command line for the example project. Begin with ``manage.py demo``."""

import os
import sys

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "example.settings")
    try:
        import aiosmtpd  # noqa: F401
        import rich  # noqa: F401
        import trustme  # noqa: F401
    except ImportError as error:
        sys.exit(f"{error}. The example needs more than the package: pip install -e '.[demo]'")
    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)
