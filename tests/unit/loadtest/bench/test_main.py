import json
from pathlib import Path

from loadtest.bench.tables import BEGIN, END, markdown

DOCS = Path(__file__).resolve().parents[4] / "deploy" / "docs"


def test_the_page_shows_the_data_that_is_committed():
    data = json.loads((DOCS / "performance" / "router.json").read_text("utf-8"))
    page = (DOCS / "performance.md").read_text("utf-8")
    shown = page.partition(BEGIN)[2].partition(END)[0]
    assert shown.strip() == markdown(data).strip()
