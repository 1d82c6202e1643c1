"""``moe-serving usage report``: one page without resources, with escaped names and all figures."""

import datetime as dt
import re
from html.parser import HTMLParser

import pytest

from serving.cli.main import main
from serving.cli.ops.usage_page import page
from serving.ledger.database import LedgerDatabase
from serving.ledger.query import DAY as WHOLE_DAY
from serving.ledger.query import Query
from serving.ledger.view import LedgerView
from serving.settings import LedgerSettings
from tests.support.ledgers import DAY, capacity, usage

NOW = dt.datetime(2026, 11, 30, 16, 40, tzinfo=dt.UTC)
EVIL = "<script>alert('&')</script>"
TOKENS = {"prompt_tokens": 3 * 10**6, "cached_tokens": 10**6, "output_tokens": 10**6}


class Page(HTMLParser):
    """Checks that tags are balanced, and collects them and the texts."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in {"meta", "br"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture
def folder(tmp_path):
    database = LedgerDatabase(LedgerSettings(directory=str(tmp_path)))
    database.migrate()
    tenants = [EVIL, *(f"tenant-{number}" for number in range(8))]
    database.insert(
        [
            *(
                usage(f"{day}-{name}", at=DAY + day * WHOLE_DAY + 3600, tenant=name, **TOKENS)
                for day in range(3)
                for name in tenants
            ),
            usage("x", tenant="bob", model="a<b", at=DAY),
            capacity(seconds=3600, gpus=8, busy=0.25),
            capacity(DAY + WHOLE_DAY, seconds=3600, gpus=8, busy=0.5),
        ]
    )
    database.close()
    return tmp_path


def write(folder, *arguments):
    settings = ("--set", f"ledger.directory={folder}", "--set", "ledger.gpu_hour_price=2.5")
    dates = ("--from", "2025-02-28", "--until", "2025-03-03")
    file = folder / "page.html"
    code = main(["usage", "report", *settings, *dates, "--output", str(file), *arguments])
    return code, file


def test_the_page_has_all_figures_and_nothing_from_elsewhere(folder, capsys):
    code, file = write(folder)
    assert (code, capsys.readouterr().out) == (0, f"{file}\n")
    text = file.read_text("utf-8")
    found = Page(text)
    assert not {tag for tag, _ in found.tags} & {"script", "link", "img", "iframe", "object"}
    assert not [name for _, names in found.tags for name in names if name in {"src", "href"}]
    assert not re.search(r"url\(|@import|https?://", text)
    policy = {"http-equiv": "Content-Security-Policy"}
    assert any(policy.items() <= names.items() for tag, names in found.tags if tag == "meta")
    assert "prefers-color-scheme:dark" in text
    assert found.texts.count(EVIL) >= 2  # as the name of a line, and in the table
    for figure in ("2025-02-28 to 2025-03-02 (UTC)", "40.00", "25.00", "15.00", "a<b"):
        assert any(figure in each for each in found.texts), figure
    charts = [names for tag, names in found.tags if tag == "svg"]
    assert len(charts) == 3
    assert "5 others" in found.texts


def test_totals_are_those_of_the_report(folder):
    """27 priced requests: at 1:00 UTC, a million tokens cost 0.14, 0.55 and 2.19."""
    found = Page(write(folder)[1].read_text("utf-8"))
    price = 27 * (0.14 + 2 * 0.55 + 2.19)
    pairs = zip(found.texts[1:], found.texts, strict=False)
    shown = dict(reversed(list(pairs)))  # the first of each name
    assert shown["Price"] == f"{price:,.2f}"
    assert shown["Requests"] == "28"
    assert shown["GPU cost"] == "40.00"
    assert shown["Idle part of GPU cost"] == "25.00"


def test_an_empty_ledger_without_gpu_price_is_a_page(tmp_path):
    settings = LedgerSettings(directory=str(tmp_path))
    database = LedgerDatabase(settings)
    database.migrate()
    view = LedgerView.of(settings, database)
    query = Query(DAY, DAY + WHOLE_DAY)
    found = Page(page(view.report(query), query, NOW, "here"))
    database.close()
    assert any("No GPU cost" in each for each in found.texts)
    assert "nothing to show" in found.texts


def test_groups_are_refused_and_a_file_that_cannot_be_written_is_an_error(folder, capsys):
    assert write(folder, "--by", "key")[0] == 2
    assert "by day, tenant and model" in capsys.readouterr().err
    assert write(folder, "--output", str(folder / "none" / "page.html"))[0] != 0
    assert "none" in capsys.readouterr().err
