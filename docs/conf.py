"""Sphinx configuration. Warnings are errors in `make check`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS), str(DOCS.parent)]  # generate.py, and the benchmarks whose results it prints

import generate

import attnpass

project = "attnpass"
author = "attnpass maintainers"
project_copyright = "2026, attnpass maintainers"
version = release = attnpass.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "_generated"]
html_theme = "furo"
html_title = "attnpass"
html_static_path = ["_static"]
html_css_files = ["attnpass.css"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
default_role = "code"  # docstrings write `name`, as Markdown does


def write_generated_pages(app: Any) -> None:
    """Print the settings, the support table and the rejection codes from the package before Sphinx reads the pages."""
    generate.write_all(DOCS / "_generated")
    generate.check_headings(DOCS / "why_kept.md")


def anchor_codes_verbatim(app: Any, doctree: Any) -> None:
    """Give each heading of `why_kept` its code as id: Sphinx would make head-dim of head_dim, and hints link there."""
    if app.env.docname == "why_kept":
        for section in doctree.findall(lambda node: node.tagname == "section"):
            title = section[0].astext()
            if title in generate.codes() and section["ids"][0] != title:
                section["ids"].insert(0, title)
                doctree.ids[title] = section


def setup(app: Any) -> dict[str, bool]:
    app.connect("builder-inited", write_generated_pages)
    app.connect("doctree-read", anchor_codes_verbatim, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
