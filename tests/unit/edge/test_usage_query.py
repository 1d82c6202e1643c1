"""Parameters of the usage and costs routes."""

import pytest
from starlette.datastructures import QueryParams

from serving.edge.usage_query import COSTS, USAGE, usage_query
from serving.errors import InvalidRequest
from serving.ledger.query import DAY, HOUR, GroupBy

NOW = 100 * DAY + 5 * HOUR + 7


def ask(text, route=USAGE):
    return usage_query(route, QueryParams(text), NOW)


@pytest.mark.parametrize(
    ("text", "start", "end", "width", "next_page"),
    [
        (f"start_time={99 * DAY}", 99 * DAY, 101 * DAY, DAY, None),
        (f"start_time={99 * DAY + 5}", 99 * DAY, 101 * DAY, DAY, None),
        ("start_time=0", 0, 7 * DAY, DAY, str(7 * DAY)),
        (f"start_time=0&page={98 * DAY}", 98 * DAY, 101 * DAY, DAY, None),
        (f"start_time=0&page={7 * DAY}&limit=31", 7 * DAY, 38 * DAY, DAY, str(38 * DAY)),
        (
            f"start_time={NOW}&bucket_width=1h",
            100 * DAY + 5 * HOUR,
            100 * DAY + 6 * HOUR,
            HOUR,
            None,
        ),
        ("start_time=0&end_time=61&bucket_width=1m", 0, 120, 60, None),
        ("start_time=0&end_time=600&bucket_width=1m&limit=2", 0, 120, 60, "120"),
    ],
)
def test_buckets_are_aligned_and_paged(text, start, end, width, next_page):
    asked = ask(text)
    assert (asked.query.start, asked.query.end, asked.query.width) == (start, end, width)
    assert asked.next_page == next_page


@pytest.mark.parametrize(
    "text",
    [
        "group_by=project_id&group_by=model",
        "group_by[]=project_id&group_by[]=model",
        "group_by=project_id,model",
    ],
)
def test_lists_are_repeated_bracketed_or_separated_by_commas(text):
    asked = ask(f"start_time=0&{text}&project_ids=a,b&api_key_ids[]=k")
    assert asked.query.group_by == {GroupBy.TENANT, GroupBy.MODEL}
    assert (asked.query.tenants, asked.query.keys, asked.query.models) == (["a", "b"], ["k"], [])


@pytest.mark.parametrize(
    ("text", "batch"), [("", None), ("&batch=true", True), ("&batch=False", False)]
)
def test_usage_is_filtered_and_grouped_by_batch(text, batch):
    asked = ask(f"start_time=0&group_by=batch{text}")
    assert (asked.query.group_by, asked.query.batch) == ({GroupBy.BATCH}, batch)
    with pytest.raises(InvalidRequest, match="batch must be true or false"):
        ask("start_time=0&batch=1")
    with pytest.raises(InvalidRequest, match="unknown parameter 'batch'"):
        ask("start_time=0&batch=true", COSTS)


def test_line_items_need_the_model():
    asked = ask("start_time=0&group_by=line_item", COSTS)
    assert asked.query.group_by == {GroupBy.MODEL}
    assert asked.groups == {"line_item"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "start_time must be a whole number"),
        ("start_time=-1", "start_time must be a whole number"),
        ("start_time=1.5", "start_time must be a whole number"),
        ("start_time=١", "start_time must be a whole number"),
        (f"start_time={10**30}", "start_time must be a whole number"),
        (f"start_time={2**37}", "start_time must be below"),
        ("start_time=0&end_time=0", "end_time must be after"),
        (f"start_time={200 * DAY}", "end_time must be after"),
        ("start_time=0&bucket_width=1w", "bucket_width must be one of 1m, 1h, 1d"),
        ("start_time=0&limit=0", "limit must be 1 to 31"),
        ("start_time=0&limit=32", "limit must be below 32"),
        ("start_time=0&page=x", "page must be"),
        ("start_time=0&page=5", "page is not a cursor"),
        (f"start_time={DAY}&page=0", "page is not a cursor"),
        (f"start_time=0&page={300 * DAY}", "page is not a cursor"),
        ("start_time=0&group_by=user_id", "group_by user_id is not supported"),
        ("start_time=0&group_by=line_item", "group_by line_item is not supported"),
        ("start_time=0&project_ids=a%00", "project_ids must not contain NUL"),
        ("start_time=0&user_ids=u", "unknown parameter 'user_ids'"),
    ],
)
def test_invalid_parameters_are_refused(text, message):
    with pytest.raises(InvalidRequest, match=message):
        ask(text)


def test_costs_have_days_only():
    with pytest.raises(InvalidRequest, match="bucket_width must be one of 1d"):
        ask("start_time=0&bucket_width=1h", COSTS)
    with pytest.raises(InvalidRequest, match="unknown parameter 'models'"):
        ask("start_time=0&models=m", COSTS)
    assert ask("start_time=0&limit=180", COSTS).query.end == 101 * DAY
