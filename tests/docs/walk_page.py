"""Updates the tables in concepts.md after modules have moved: ``python -m tests.docs.walk_page``.

The order is that of a real request's calls. Existing texts are kept; a new module gets the first
line of its docstring, to be rewritten as a step.
"""

import ast
import asyncio
import re

from tests.docs import walk
from tests.docs.pages import ROOT

PAGE = ROOT / "deploy" / "docs" / "concepts.md"
LINK = ("h2grpc.connection", "h2grpc.frames", "h2grpc.http2", "h2grpc.budget")
"""Modules that read and write frames of the link while a REST request is in progress."""
TITLES = ("A request over REST", "A request over gRPC", "A token's path to the client")
_ROW = re.compile(r"^\| `([\w.]+)` \| (.+) \|$", re.MULTILINE)


def section(page: str, title: str) -> str:
    """Return the text of a section, up to the next heading of its level or above."""
    found = re.search(
        rf"^#+ {re.escape(title)}\n(?P<body>.*?)(?=^#{{1,3}} |\Z)", page, re.MULTILINE | re.DOTALL
    )
    assert found, title
    return found["body"]


def modules(page: str, title: str) -> list[str]:
    """Return the modules that a section lists, in order."""
    return [module for module, _ in _ROW.findall(section(page, title))]


def walks(rest: list[walk.Call], grpc: list[walk.Call]) -> dict[str, list[str]]:
    """Return the modules of each section, from the calls of a request over REST and over gRPC."""
    shared = walk.down(rest, beside=LINK)
    only_grpc = [name for name in walk.down(grpc) if name not in shared]
    return dict(zip(TITLES, (shared, only_grpc, walk.up(rest)), strict=True))


def updated(page: str, found: dict[str, list[str]]) -> str:
    """Return the page with the tables of ``found``."""
    known = {name: text for title in TITLES for name, text in _ROW.findall(section(page, title))}
    for title, names in found.items():
        body = section(page, title)
        texts = known | dict(_ROW.findall(body))
        table = "".join(f"| `{name}` | {texts.get(name) or _summary(name)} |\n" for name in names)
        before = body.partition("| module |")[0]
        page = page.replace(body, f"{before}| module | step |\n|---|---|\n{table}\n")
    return page


def _summary(module: str) -> str:
    file = ROOT / "serving" / (module.replace(".", "/") + ".py")
    text = ast.get_docstring(ast.parse(file.read_text("utf-8"))) or ""
    return " ".join(text.partition("\n\n")[0].split())


def main() -> None:
    """Rewrite the page."""
    rest, grpc = (asyncio.run(walk.watched(ask)) for ask in (walk.ask_rest, walk.ask_grpc))
    PAGE.write_text(updated(PAGE.read_text("utf-8"), walks(rest, grpc)), "utf-8")


if __name__ == "__main__":
    main()
