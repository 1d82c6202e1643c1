"""Configuration of the documentation site; `make docs` builds it into build/docs.

The pages are Markdown and remain readable on a code host: index.md is a list of links, from which
the navigation is built, and links to files outside this folder become downloads.
"""

import re
from pathlib import Path

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx

project = "moe-serving"
author = "the moe-serving authors"
extensions = ["myst_parser"]
exclude_patterns = ["generate"]
myst_heading_anchors = 4  # links to headings, as code hosts create them
html_theme = "furo"
html_title = "moe-serving"
html_copy_source = False
html_show_sphinx = False
suppress_warnings = [
    # Pygments' console lexer reads each line separately, so it fails on a command that continues on
    # the next line inside quotes. That line is then shown without colours.
    "misc.highlighting_failure",
]

_SECTION = re.compile(r"^## (?P<title>.+)\n(?P<body>(?:(?!^## ).*\n)*)", re.MULTILINE)
_PAGE = re.compile(r"^- \[[^]]*\]\((?P<page>[\w/.-]+)\.md\)", re.MULTILINE)


def add_navigation(_: Sphinx, docname: str, source: list[str]) -> None:
    """Append a hidden toctree for each section of index.md that lists pages."""
    if docname != "index":
        return
    for section in _SECTION.finditer(source[0]):
        if pages := _PAGE.findall(section["body"]):
            source[0] += (
                f"\n```{{toctree}}\n:hidden:\n:caption: {section['title']}\n\n"
                + "\n".join(pages)
                + "\n```\n"
            )


def allow_other_files(app: Sphinx, doctree: nodes.document) -> None:
    """Show links to folders and to Markdown files outside the site as plain text."""
    folder = (Path(app.srcdir) / app.env.docname).parent
    for link in list(doctree.findall(pending_xref)):
        target = link["reftarget"].partition("#")[0]
        outside = target.startswith("/") and Path(f"{target}.md").is_file()
        if outside or (link["refdomain"] is None and (folder / target).is_dir()):
            link.replace_self(link.children)


def setup(app: Sphinx) -> None:
    """Connect the functions above."""
    app.connect("source-read", add_navigation)
    app.connect("doctree-read", allow_other_files)
