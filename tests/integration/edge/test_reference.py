"""deploy/docs/reference/rest.md describes the routes that a router serves."""

from pathlib import Path

from deploy.docs.generate import rest

PAGE = Path(__file__).resolve().parents[3] / "deploy" / "docs" / "reference" / "rest.md"


async def test_the_page_is_as_generated():
    assert rest.page(await rest.document()) == PAGE.read_text("utf-8"), "make docs writes it"
