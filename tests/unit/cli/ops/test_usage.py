"""``moe-serving usage``: groups, formats, dates, and errors."""

import csv
import datetime as dt
import io
import json
from decimal import Decimal

import pytest

from serving.cli.main import main
from serving.cli.ops.usage import By, query_of
from serving.flags.messages import FlagError
from serving.ledger.database import LedgerDatabase
from serving.ledger.query import HOUR
from serving.settings import LedgerSettings
from tests.support.ledgers import DAY, capacity, usage

DATES = ("--from", "2025-02-28", "--until", "2025-03-02")
NOW = dt.datetime(2026, 11, 30, 16, 40, tzinfo=dt.UTC)


@pytest.fixture
def folder(tmp_path):
    database = LedgerDatabase(LedgerSettings(directory=str(tmp_path)))
    database.migrate()
    tokens = {"prompt_tokens": 3 * 10**6, "cached_tokens": 10**6, "output_tokens": 10**6}
    database.insert(
        [
            usage("a", at=DAY + 3600, **tokens),
            usage("b", at=DAY + 20 * 3600, tenant="bob", **tokens),
            usage("c", at=DAY + 30 * 3600, **tokens),
            usage("d", at=DAY + 30 * 3600, tenant="bob", model="other", key_id=None),
            capacity(seconds=3600, gpus=1, busy=0.5),
        ]
    )
    database.close()
    return tmp_path


def run(capsys, folder, *arguments):
    settings = ("--set", f"ledger.directory={folder}", "--set", "ledger.gpu_hour_price=2.5")
    code = main(["usage", *settings, *arguments])
    out, err = capsys.readouterr()
    assert code == 0, err
    return out


def test_the_table_has_a_row_for_each_day_tenant_and_model(capsys, folder):
    lines = run(capsys, folder, *DATES).splitlines()
    tokens = ["3,000,000", "1,000,000", "1,000,000", "0"]
    assert [line.split() for line in lines[1:-2]] == [
        ["2025-02-28", "alice", "deepseek-r1", "1", *tokens, "3.43", "3.43", "0.625000"],
        ["2025-02-28", "bob", "deepseek-r1", "1", *tokens, "3.43", "0.855000", "0.625000"],
        ["2025-03-01", "alice", "deepseek-r1", "1", *tokens, "3.43", "3.43", "-"],
        ["2025-03-01", "bob", "other", "1", "10", "4", "20", "0", "-", "-", "-"],
    ]
    assert lines[-2] == (
        "price 7.72 USD; 1.00 GPU-hours cost 2.50, 1.25 of it idle; margin 208.60 % of the cost"
    )
    assert "ledger.tariff_file" in lines[-1]


def test_csv_is_exact_and_merges_days_unless_they_are_a_group(capsys, folder):
    text = run(capsys, folder, *DATES, "--by", "tenant", "--format", "csv")
    rows = {row["tenant"]: row for row in csv.DictReader(io.StringIO(text))}
    assert rows["alice"] == {
        "tenant": "alice",
        "requests": "2",
        "prompt_tokens": "6000000",
        "cached_tokens": "2000000",
        "output_tokens": "2000000",
        "reasoning_tokens": "0",
        "rank_seconds": "2",
        "list_price": "6.86",
        "price": "6.86",
        "cost": "0.625",
    }
    assert rows["bob"]["price"] == ""


def test_json_has_amounts_as_text_and_idle_apart(capsys, folder):
    found = json.loads(run(capsys, folder, *DATES, "--by", "key", "--format", "json"))
    assert {row["key"]: row["requests"] for row in found["usage"]} == {"alice-1": 3, None: 1}
    assert found["currency"] == "USD"
    (gpus,) = found["gpus"]
    assert gpus["start"] == "2025-02-28T00:00Z"
    assert (gpus["cost"], gpus["busy_cost"], gpus["idle_cost"]) == ("2.5", "1.25", "1.25")
    assert found["totals"]["unpriced_rows"] == 1
    assert Decimal(found["totals"]["price"]) == Decimal("7.715")


def test_filters_and_hours(capsys, folder):
    flags = ("--by", "hour", "--tenant", "bob", "--model", "deepseek-r1", "--format", "csv")
    rows = run(capsys, folder, *DATES, *flags).splitlines()
    assert len(rows) == 2
    assert rows[1].startswith("2025-02-28T20:00Z,1,")
    (names,) = run(capsys, folder, "--format", "csv", "--by", "tenant").splitlines()
    assert names.startswith("tenant,requests,prompt_tokens,")


def test_hours_that_are_not_asked_for_are_not_in_the_sum(capsys, folder):
    flags = ("--by", "tenant", "--until", "2025-02-28T20:00", "--format", "csv")
    rows = run(capsys, folder, "--from", "2025-02-28", *flags).splitlines()[1:]
    assert [row.split(",")[:2] for row in rows] == [["alice", "1"]]


def test_names_are_no_markup(capsys, tmp_path):
    database = LedgerDatabase(LedgerSettings(directory=str(tmp_path)))
    database.migrate()
    database.insert([usage("a", model="[bold]m[/nope]")])
    database.close()
    assert "[bold]m[/nope]" in run(capsys, tmp_path, *DATES)


@pytest.mark.parametrize(
    ("groups", "begin", "until", "start", "end"),
    [
        ((By.DAY,), None, None, "2026-11-24T00:00", "2026-12-01T00:00"),
        ((By.HOUR,), "2026-11-30", "2026-11-30T10:30", "2026-11-30T00:00", "2026-11-30T11:00"),
        ((By.TENANT,), "2026-11-01T05:30", None, "2026-11-01T05:00", "2026-12-01T00:00"),
        ((By.DAY,), "2026-11-01T05:30", None, "2026-11-01T00:00", "2026-12-01T00:00"),
        ((By.HOUR,), "2026-11-30T02:00+02:00", None, "2026-11-30T00:00", "2026-12-01T00:00"),
    ],
)
def test_dates_are_in_utc_and_cover_whole_periods(groups, begin, until, start, end):
    query = query_of(groups, begin, until, NOW, (), ())
    found = [
        dt.datetime.fromtimestamp(time, dt.UTC).strftime("%Y-%m-%dT%H:%M")
        for time in (query.start, query.end)
    ]
    assert found == [start, end]
    assert query.width == (86_400 if By.DAY in groups else HOUR)


@pytest.mark.parametrize(
    ("begin", "until"), [("soon", None), ("2026-11-30", "2026-11-30"), (None, "2020-01-01")]
)
def test_wrong_dates_are_refused(begin, until):
    with pytest.raises(FlagError, match=r"--from|--until"):
        query_of((By.DAY,), begin, until, NOW, (), ())


def test_errors_name_the_setting(capsys, tmp_path):
    for flags, message in (
        ((), "set ledger.directory"),
        (("--set", f"ledger.directory={tmp_path}"), "there is no ledger in"),
        (
            ("--set", f"ledger.directory={tmp_path}", "--set", "ledger.tariff_file=/none"),
            "cannot read tariff /none",
        ),
    ):
        assert main(["usage", *flags]) == 1
        assert message in capsys.readouterr().err
