"""The page of ``moe-serving usage report``: one HTML file without external resources.

Names of tenants and models are escaped, and the page's security policy forbids scripts and
requests.
"""

import datetime as dt
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from html import escape

from loadtest.charts import COLOURS, Chart, Series
from loadtest.report_style import STYLE
from serving.ledger.query import DAY, Query
from serving.ledger.report import PeriodCost, Report, Row, margin, merged

_MILLION = 10**6
_CENT = Decimal("0.01")
_MICRO = Decimal("0.000001")
_LARGEST = len(COLOURS) - 1
"""Maximum number of tenants with a separate line."""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_CARDS = """
.cards{display:flex;flex-wrap:wrap;gap:12px;margin:18px 0}
.cards div{background:var(--card);border-radius:8px;padding:10px 16px;min-width:120px}
.cards b{display:block;font-size:20px;font-variant-numeric:tabular-nums}
.cards span{color:var(--dim);font-size:13px}
"""


def page(found: Report, query: Query, now: dt.datetime, where: str) -> str:
    """Return the page.

    Args:
        found: Usage by day, tenant and model.
        query: The query behind the usage; its periods are days.
        now: Time shown as the creation time of the page.
        where: The database's address, without a password.
    """
    days = list(range(query.start, query.end, DAY))
    first, last = _date(query.start), _date(query.end - DAY)
    period = first if first == last else f"{first} to {last}"
    head = (
        f"{period} (UTC), {escape(where)}, written {now:%Y-%m-%d %H:%M} UTC. Amounts in "
        f"{escape(found.currency)}."
    )
    body = [
        "<h1>Usage, price and cost</h1>",
        f"<p class=sub>{head}</p>",
        _cards(found),
        *_notes(found),
        "<h2>By day</h2><div class=charts>",
        *(chart.svg() for chart in _charts(found, days)),
        "</div>",
        "<h2>By tenant and model</h2>",
        _usage_table(merged(found.rows)),
    ]
    if found.periods:
        body += ["<h2>GPU time</h2>", _gpu_table(found.periods)]
    return (
        '<!doctype html><html lang=en><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name=viewport content="width=device-width,initial-scale=1">'
        f"<title>Usage, {period}</title><style>{STYLE}{_CARDS}</style></head>"
        f"<body>{''.join(body)}</body></html>\n"
    )


def _cards(found: Report) -> str:
    tokens = sum(row.tokens.prompt + row.tokens.output for row in found.rows)
    idle = sum((period.idle for period in found.periods), Decimal(0))
    cards = [
        ("Requests", f"{sum(row.tokens.requests for row in found.rows):,}"),
        ("Tokens", f"{tokens:,}"),
        ("Price", _money(found.price)),
    ]
    if found.list_price != found.price:
        cards.append(("List price", _money(found.list_price)))
    if found.periods:
        cards += [("GPU cost", _money(found.cost)), ("Idle part of GPU cost", _money(idle))]
        if tokens:
            cards.append(("Cost per million tokens", _money(found.cost * _MILLION / tokens)))
    if (ratio := margin(found.price, found.cost)) is not None:
        cards.append(("Margin", f"{(ratio * 100).quantize(_CENT):,} % of the cost"))
    shown = (f"<div><b>{value}</b><span>{name}</span></div>" for name, value in cards)
    return f"<div class=cards>{''.join(shown)}</div>"


def _notes(found: Report) -> Iterable[str]:
    if not found.periods:
        yield (
            "<p class=sub>No GPU cost: ledger.gpu_hour_price is not set, or routers recorded no "
            "GPU time.</p>"
        )
    unpriced = sorted({row.model or "" for row in found.rows if row.price is None})
    if unpriced:
        names = ", ".join(map(escape, unpriced))
        yield (
            f"<div class='banner note'>The tariff has no price for {names}: these requests are "
            "counted, but not included in the price.</div>"
        )
    yield (
        "<p class=sub>The price is exact. The cost shares the busy GPU time of a day among its "
        "requests by their time on ranks, which is a model; idle time is not shared.</p>"
    )


def _charts(found: Report, days: Sequence[int]) -> Iterable[Chart]:
    x = f"days since {_date(days[0])}"
    price, tokens = _by_day(found.rows, _price), _by_day(found.rows, _tokens)
    costs = {period.start: period for period in found.periods}

    def points(value: Callable[[int], Decimal | None]) -> list[tuple[float, float]]:
        values = ((index, value(day)) for index, day in enumerate(days))
        return [(float(index), float(each)) for index, each in values if each is not None]

    def per_million(amount: Decimal, day: int) -> Decimal | None:
        return amount * _MILLION / tokens[day] if tokens.get(day) else None

    series = [Series("price", points(lambda day: per_million(price.get(day, Decimal(0)), day)))]
    if costs:
        total = points(lambda day: per_million(costs[day].total, day) if day in costs else None)
        busy = points(lambda day: per_million(costs[day].busy, day) if day in costs else None)
        series += [Series("GPU cost", total, colour="c1"), Series("busy part", busy, colour="c2")]
    yield Chart("Per million tokens", x, found.currency, series)
    yield Chart("Price by tenant", x, found.currency, list(_tenants(found.rows, points)))
    if costs:
        share = points(
            lambda day: (
                100 * costs[day].idle / costs[day].total
                if day in costs and costs[day].total
                else None
            )
        )
        yield Chart("Idle share of GPU time", x, "%", [Series("idle", share)])


def _tenants(
    rows: Sequence[Row], points: Callable[..., list[tuple[float, float]]]
) -> Iterable[Series]:
    """Yield the prices of the largest tenants, and the sum of all others."""
    sums: dict[str, dict[int, Decimal]] = {}
    for row in rows:
        days = sums.setdefault(row.tenant or "", {})
        days[row.start] = days.get(row.start, Decimal(0)) + _price(row)
    ordered = sorted(sums, key=lambda name: (-sum(sums[name].values(), Decimal(0)), name))
    for colour, name in zip(COLOURS, ordered[:_LARGEST], strict=False):
        days = sums[name]
        yield Series(name, points(lambda day, days=days: days.get(day, Decimal(0))), colour=colour)
    rest = [row for row in rows if (row.tenant or "") in ordered[_LARGEST:]]
    if rest:
        others = _by_day(rest, _price)
        name = f"{len(ordered) - _LARGEST} others"
        yield Series(
            name, points(lambda day: others.get(day, Decimal(0))), colour=COLOURS[_LARGEST]
        )


def _usage_table(rows: Iterable[Row]) -> str:
    names = (
        "tenant", "model", "requests", "prompt", "cached", "output", "reasoning", "list price",
        "price", "cost",
    )  # fmt: skip
    ordered = sorted(rows, key=lambda row: (-_price(row), row.tenant or "", row.model or ""))
    cells = (
        (
            escape(row.tenant or "-"),
            escape(row.model or "-"),
            *(f"{count:,}" for count in (
                row.tokens.requests, row.tokens.prompt, row.tokens.cached, row.tokens.output,
                row.tokens.reasoning,
            )),
            _money(None if row.list_price is None else row.list_price.total),
            _money(None if row.price is None else row.price.total),
            _money(row.cost),
        )
        for row in ordered
    )  # fmt: skip
    return _table(names, cells)


def _gpu_table(periods: Iterable[PeriodCost]) -> str:
    cells = (
        (
            _date(each.start),
            f"{each.gpu_hours:,.2f}",
            f"{each.busy_hours:,.2f}",
            _money(each.total),
            _money(each.busy),
            _money(each.idle),
        )
        for each in periods
    )
    return _table(("day", "GPU-hours", "busy", "cost", "busy part", "idle part"), cells)


def _table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{name}</th>" for name in names)
    lines = ("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<div class=scroll><table><tr>{head}</tr>{''.join(lines)}</table></div>"


def _by_day(rows: Iterable[Row], value: Callable[[Row], Decimal]) -> dict[int, Decimal]:
    sums: dict[int, Decimal] = {}
    for row in rows:
        sums[row.start] = sums.get(row.start, Decimal(0)) + value(row)
    return sums


def _price(row: Row) -> Decimal:
    return Decimal(0) if row.price is None else row.price.total


def _tokens(row: Row) -> Decimal:
    return Decimal(row.tokens.prompt + row.tokens.output)


def _date(second: int) -> str:
    return dt.datetime.fromtimestamp(second, dt.UTC).strftime("%Y-%m-%d")


def _money(value: Decimal | None) -> str:
    if value is None:
        return "-"
    return f"{value.quantize(_CENT if abs(value) >= 1 else _MICRO):,}"
