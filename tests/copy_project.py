"""``copy_project.py SOURCE TARGET``: all that the tests need of the project, but the package."""

import shutil
import sys
from pathlib import Path

source, target = map(Path, sys.argv[1:])
leave_out = shutil.ignore_patterns("__pycache__", "*.sqlite3*", "var", "_build")
for name in ("tests", "docs", "example_project"):
    shutil.rmtree(target / name, ignore_errors=True)
    shutil.copytree(source / name, target / name, ignore=leave_out)
for name in ("pyproject.toml", "README.md", "CONTRIBUTING.md"):
    shutil.copy(source / name, target / name)
