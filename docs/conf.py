"""Sphinx: MyST pages, furo, and the API from its docstrings."""

from importlib.metadata import version as _version

project = "braze_sends"
copyright = "2026, the braze_sends authors"  # noqa: A001  # Sphinx's name for it
release = version = _version("braze_sends")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["narrow.css"]
html_title = f"braze_sends {version}"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True}
napoleon_use_ivar = True
python_maximum_signature_line_length = 88
