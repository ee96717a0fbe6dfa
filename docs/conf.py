"""Sphinx configuration. ``sphinx-build -W -n docs docs/_build``"""

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
