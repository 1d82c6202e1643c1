"""Query parameters of the usage and costs routes, with the names and limits of OpenAI's API."""

from collections.abc import Mapping
from dataclasses import dataclass

from starlette.datastructures import QueryParams

from serving.errors import InvalidRequest
from serving.ledger.query import DAY, HOUR, GroupBy, Query

USAGE = "/v1/organization/usage/completions"
COSTS = "/v1/organization/costs"
LINE_ITEM = "line_item"

_WIDTHS = {"1m": 60, "1h": HOUR, "1d": DAY}
_LIMITS = {
    USAGE: {"1m": (60, 1440), "1h": (24, 168), "1d": (7, 31)},
    COSTS: {"1d": (7, 180)},
}
"""Default and maximum of ``limit``, by route and bucket width."""
_GROUPS = {
    "project_id": GroupBy.TENANT,
    "model": GroupBy.MODEL,
    "api_key_id": GroupBy.KEY,
    "batch": GroupBy.BATCH,
}
_ALLOWED_GROUPS = {
    USAGE: frozenset(_GROUPS),
    COSTS: frozenset({"project_id", "api_key_id", LINE_ITEM}),
}
_FLAGS: Mapping[str, tuple[str, ...]] = {USAGE: ("batch",), COSTS: ()}
_FILTERS = {USAGE: ("project_ids", "models", "api_key_ids"), COSTS: ("project_ids", "api_key_ids")}
_FLAG = {"true": True, "false": False}
_SINGLE = ("start_time", "end_time", "bucket_width", "limit", "page")
_MAX_TIME = 2**37
"""Exclusive upper bound on times, Unix seconds (in the year 6325)."""


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """A validated request."""

    query: Query
    """The buckets of this page."""
    groups: frozenset[str]
    """Values of ``group_by``."""
    next_page: str | None
    """Cursor of the next page. None on the last page."""


def usage_query(route: str, params: QueryParams, now: float) -> UsageQuery:
    """Validate the parameters of a request.

    Args:
        route: ``USAGE`` or ``COSTS``.
        params: Query parameters; lists may be repeated, with or without ``[]``, or separated by
            commas.
        now: Unix time, the default of ``end_time``.

    Raises:
        InvalidRequest: A parameter is unknown or invalid.
    """
    known = {*_SINGLE, "group_by", *_FILTERS[route], *_FLAGS[route]}
    for name in params:
        if name.removesuffix("[]") not in known:
            raise InvalidRequest(
                f"unknown parameter {name!r}; this route has {', '.join(sorted(known))}"
            )
    word = params.get("bucket_width", "1d")
    if word not in _LIMITS[route]:
        raise InvalidRequest(f"bucket_width must be one of {', '.join(_LIMITS[route])}")
    width = _WIDTHS[word]
    default, most = _LIMITS[route][word]
    limit = _number(params, "limit", most + 1) if "limit" in params else default
    if limit < 1:
        raise InvalidRequest(f"limit must be 1 to {most}")
    first = _number(params, "start_time", _MAX_TIME) // width * width
    end = _number(params, "end_time", _MAX_TIME) if "end_time" in params else int(now) + 1
    end = -(-end // width) * width
    if end <= first:
        raise InvalidRequest("end_time must be after start_time")
    start = _number(params, "page", _MAX_TIME) if "page" in params else first
    if start % width or not first <= start < end:
        raise InvalidRequest("page is not a cursor of these parameters")
    page_end = min(start + limit * width, end)
    groups = frozenset(_list(params, "group_by"))
    if unknown := groups - _ALLOWED_GROUPS[route]:
        raise InvalidRequest(
            f"group_by {', '.join(sorted(unknown))} is not supported; this route has "
            f"{', '.join(sorted(_ALLOWED_GROUPS[route]))}"
        )
    group_by = {_GROUPS[name] for name in groups - {LINE_ITEM}}
    if LINE_ITEM in groups:
        group_by.add(GroupBy.MODEL)
    query = Query(
        start,
        page_end,
        width,
        frozenset(group_by),
        tenants=_list(params, "project_ids"),
        models=_list(params, "models"),
        keys=_list(params, "api_key_ids"),
        batch=_flag(params, "batch"),
    )
    return UsageQuery(query, groups, str(page_end) if page_end < end else None)


def _number(params: QueryParams, name: str, limit: int) -> int:
    text = params.get(name, "")
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(limit))):
        raise InvalidRequest(f"{name} must be a whole number")
    value = int(text)
    if value >= limit:
        raise InvalidRequest(f"{name} must be below {limit}")
    return value


def _flag(params: QueryParams, name: str) -> bool | None:
    if name not in params:
        return None
    found = _FLAG.get(params[name].lower())
    if found is None:
        raise InvalidRequest(f"{name} must be true or false")
    return found


def _list(params: QueryParams, name: str) -> list[str]:
    given = [*params.getlist(name), *params.getlist(f"{name}[]")]
    if any("\0" in text for text in given):
        raise InvalidRequest(f"{name} must not contain NUL characters")  # PostgreSQL has none
    return [part for text in given for part in text.split(",") if part]
