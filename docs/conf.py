"""Sphinx configuration. ``sphinx-build -W -n docs docs/_build``"""

import re

project = "mailpool"
author = "The mailpool developers"
copyright = "2026, the mailpool developers"
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "_static"]  # the benchmark's tables are part of a page
html_theme = "furo"
html_title = "mailpool"
html_static_path = ["_static"]
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]


def setup(app):
    app.connect("source-read", add_toctree)


def add_toctree(app, name, source):
    """The links of ``index.md`` as Sphinx's table of contents, which GitHub would show as code."""
    if name == "index":
        pages = re.findall(r"^- \[.*\]\((.+)\.md\)$", source[0], re.MULTILINE)
        source[0] += "\n```{toctree}\n:hidden:\n\n" + "\n".join(pages) + "\n```\n"
