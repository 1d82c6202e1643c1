"""``moe-serving usage``: requests, tokens, price and cost, from the ledger's database."""

import csv
import datetime as dt
import json
import sys
from collections.abc import Iterable, Sequence
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from rich.console import Console
from rich.table import Table

from serving.cli.options import ConfigOption, SetOption, settings_from
from serving.errors import SettingsError
from serving.flags.messages import FlagError, refusal
from serving.ledger.query import DAY, HOUR, GroupBy, Query
from serving.ledger.report import PeriodCost, Report, Row, margin, merged
from serving.ledger.tariff import Amounts, Tokens

_DEFAULT_DAYS = 7
_CENT = Decimal("0.01")
_MICRO = Decimal("0.000001")


class By(StrEnum):
    """Values of ``--by``."""

    DAY = "day"
    HOUR = "hour"
    TENANT = "tenant"
    MODEL = "model"
    KEY = "key"
    BATCH = "batch"


class Format(StrEnum):
    """Values of ``--format``."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"


class Action(StrEnum):
    """Subcommands."""

    SHOW = "show"
    REPORT = "report"


_PAGE_GROUPS = (By.DAY, By.TENANT, By.MODEL)
_GROUPS = {
    By.TENANT: GroupBy.TENANT,
    By.MODEL: GroupBy.MODEL,
    By.KEY: GroupBy.KEY,
    By.BATCH: GroupBy.BATCH,
}


def usage_command(
    action: Annotated[
        Action, typer.Argument(help="Print the usage, or write an HTML page with charts.")
    ] = Action.SHOW,
    begin: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="DATE",
            help="First day or hour (2026-11-30T16:00), UTC.",
            show_default="six days ago",
        ),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(
            "--until",
            metavar="DATE",
            help="Day or hour at which to end (exclusive), UTC.",
            show_default="the end of today",
        ),
    ] = None,
    by: Annotated[
        list[By] | None,
        typer.Option(
            "--by", help="show: Group by this. Repeatable.", show_default="day, tenant and model"
        ),
    ] = None,
    tenants: Annotated[
        list[str] | None,
        typer.Option("--tenant", metavar="NAME", help="Only this tenant. Repeatable."),
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="NAME", help="Only this model. Repeatable."),
    ] = None,
    output: Annotated[Format, typer.Option("--format", help="show: Output format.")] = Format.TABLE,
    file: Annotated[
        Path,
        typer.Option("--output", metavar="FILE", help="report: File to write."),
    ] = Path("usage.html"),
    config: ConfigOption = None,
    sets: SetOption = None,
) -> None:
    """Show the requests, tokens, price and cost in the ledger, or write them as a page.

    Reads the database that the ledger.* settings specify; they must be the same as the routers'
    settings. Tenants that were removed from the key file are included. The price follows
    ledger.tariff_file; the cost is the tenant's share of the busy GPU time at
    ledger.gpu_hour_price. Times are in UTC.

    For example:

      moe-serving usage --set ledger.directory=/var/lib/moe-serving

      moe-serving usage --config settings.yaml --by tenant --from 2026-11-01 --format csv

      moe-serving usage report --config settings.yaml --from 2026-11-01 --output november.html
    """
    if action is Action.REPORT and by:
        raise FlagError("usage report does not accept --by: it groups by day, tenant and model")
    settings = settings_from(config, sets).ledger
    if settings.directory is None:
        raise SettingsError("no ledger: set ledger.directory to the routers' directory")
    from serving.ledger.database import LedgerDatabase
    from serving.ledger.view import LedgerView

    groups = tuple(by or _PAGE_GROUPS)
    now = dt.datetime.now(dt.UTC)
    query = query_of(groups, begin, until, now, tenants or (), models or ())
    database = LedgerDatabase(settings)
    try:
        view = LedgerView.of(settings, database)
        view.check()
        found = view.report(query)
    finally:
        database.close()
    if action is Action.REPORT:
        from serving.cli.ops.usage_page import page
        from serving.cli.plan.inputs import write_text

        write_text(file, page(found, query, now, view.where))
        print(file)
        return
    rows = found.rows if {By.DAY, By.HOUR} & {*groups} else tuple(merged(found.rows))
    {Format.TABLE: _print_table, Format.CSV: _print_csv, Format.JSON: _print_json}[output](
        found, rows, groups, sys.stdout
    )


def query_of(
    groups: Sequence[By],
    begin: str | None,
    until: str | None,
    now: dt.datetime,
    tenants: Sequence[str],
    models: Sequence[str],
) -> Query:
    """Return the query that the flags describe.

    Raises:
        FlagError: A date is invalid, or ``until`` is not after ``begin``.
    """
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    start = today - dt.timedelta(days=_DEFAULT_DAYS - 1)
    end = today + dt.timedelta(days=1)
    start = start if begin is None else _time("--from", begin)
    end = end if until is None else _time("--until", until)
    # Summing whole days is cheaper, but would bill hours outside the requested period.
    parts = By.DAY not in groups and any(map(_within_a_day, (start, end)))
    width = HOUR if By.HOUR in groups or parts else DAY
    first = int(start.timestamp()) // width * width
    last = -(-int(end.timestamp()) // width) * width
    if last <= first:
        raise FlagError(refusal("--until", until or str(end.date()), "a time after --from"))
    group_by = frozenset(_GROUPS[each] for each in groups if each in _GROUPS)
    return Query(first, last, width, group_by, tenants=tenants, models=models)


def _within_a_day(time: dt.datetime) -> bool:
    return time.timestamp() % DAY != 0


def _time(flag: str, text: str) -> dt.datetime:
    try:
        found = dt.datetime.fromisoformat(text)
    except ValueError as error:
        wanted = "a date such as 2026-11-30, or 2026-11-30T16:00"
        raise FlagError(refusal(flag, text, wanted)) from error
    return found.replace(tzinfo=dt.UTC) if found.tzinfo is None else found


def fields_of(row: Row, groups: Sequence[By]) -> dict[str, Any]:
    """Return a row's values by column; amounts are exact decimals or None."""
    start = dt.datetime.fromtimestamp(row.start, dt.UTC)
    places = {
        By.DAY: start.strftime("%Y-%m-%d"),
        By.HOUR: start.strftime("%Y-%m-%dT%H:%MZ"),
        By.TENANT: row.tenant,
        By.MODEL: row.model,
        By.KEY: row.key_id,
        By.BATCH: row.batch,
    }
    tokens = row.tokens
    return {
        **{str(each): places[each] for each in groups},
        "requests": tokens.requests,
        "prompt_tokens": tokens.prompt,
        "cached_tokens": tokens.cached,
        "output_tokens": tokens.output,
        "reasoning_tokens": tokens.reasoning,
        "rank_seconds": row.rank_seconds,
        "list_price": _total(row.list_price),
        "price": _total(row.price),
        "cost": row.cost,
    }


_NO_ROW = Row(0, None, None, None, Tokens(), Decimal(0), None, None, None)
"""The names of the columns, as a row."""


def _total(amounts: Amounts | None) -> Decimal | None:
    return None if amounts is None else amounts.total


def _exact(value: Decimal) -> str:
    """Return a decimal without an exponent or trailing zeros."""
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _print_csv(found: Report, rows: Iterable[Row], groups: Sequence[By], out: TextIO) -> None:
    del found
    lines = csv.writer(out, lineterminator="\n")
    lines.writerow(fields_of(_NO_ROW, groups))
    for row in rows:
        fields = fields_of(row, groups)
        lines.writerow(_exact(v) if isinstance(v, Decimal) else v for v in fields.values())


def _print_json(found: Report, rows: Iterable[Row], groups: Sequence[By], out: TextIO) -> None:
    document = {
        "currency": found.currency,
        "usage": [fields_of(row, groups) for row in rows],
        "gpus": [_gpu_fields(period) for period in found.periods],
        "totals": _totals(found),
    }
    # Amounts are strings, because most JSON readers turn numbers into floats.
    json.dump(document, out, default=_exact, indent=2)
    out.write("\n")


def _gpu_fields(period: PeriodCost) -> dict[str, Any]:
    return {
        "start": dt.datetime.fromtimestamp(period.start, dt.UTC).strftime("%Y-%m-%dT%H:%MZ"),
        "gpu_hours": period.gpu_hours,
        "busy_hours": period.busy_hours,
        "cost": period.total,
        "busy_cost": period.busy,
        "idle_cost": period.idle,
    }


def _totals(found: Report) -> dict[str, Any]:
    ratio = margin(found.price, found.cost)
    return {
        "list_price": found.list_price,
        "price": found.price,
        "gpu_hours": sum((period.gpu_hours for period in found.periods), Decimal(0)),
        "cost": found.cost,
        "idle_cost": sum((period.idle for period in found.periods), Decimal(0)),
        "margin_percent": None if ratio is None else (ratio * 100).quantize(_CENT),
        "unpriced_rows": sum(row.price is None for row in found.rows),
    }


def _print_table(found: Report, rows: Iterable[Row], groups: Sequence[By], out: TextIO) -> None:
    # A pipe or a file has no width, so use one that is wide enough.
    console = Console(file=out, highlight=False, markup=False, width=None if out.isatty() else 250)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for each in groups:
        table.add_column(each, no_wrap=True)
    for name in ("requests", "prompt", "cached", "output", "reasoning"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("list price", "price", "cost"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        fields = fields_of(row, groups)
        places = [_PLACES.get(fields[each], fields[each]) for each in groups]
        counts = [f"{fields[f'{name}']:,}" for name in ("requests", *_TOKENS)]
        money = [_money(fields[name]) for name in ("list_price", "price", "cost")]
        table.add_row(*places, *counts, *money)
    console.print(table)
    totals = _totals(found)
    line = f"price {_money(totals['price'])} {found.currency}"
    if found.periods:
        line += (
            f"; {totals['gpu_hours']:,.2f} GPU-hours cost {_money(totals['cost'])}, "
            f"{_money(totals['idle_cost'])} of it idle"
        )
    if totals["margin_percent"] is not None:
        line += f"; margin {totals['margin_percent']:,} % of the cost"
    console.print(line)
    if totals["unpriced_rows"]:
        console.print("- means that the tariff has no price for the model (ledger.tariff_file)")


_PLACES = {None: "-", "": "-", True: "yes", False: "no"}
"""Display texts for special values of a group."""
_TOKENS = ("prompt_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")


def _money(value: Decimal | None) -> str:
    if value is None:
        return "-"
    return f"{value.quantize(_CENT if value >= 1 else _MICRO):,}"
