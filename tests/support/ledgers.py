"""Records for tests of the ledger."""

from serving.ledger.records import SECOND, GroupCapacity, RequestUsage

DAY = 1_740_700_800 // 86_400 * 86_400
"""0:00 UTC of 28 February 2025."""


def usage(record_id="r-0", *, at=DAY, **fields):
    """Return the record of a request that ended at a Unix time."""
    return RequestUsage(
        **{
            "record_id": record_id,
            "finished_us": round(at * SECOND),
            "request_id": f"client-{record_id}",
            "tenant": "alice",
            "key_id": "alice-1",
            "model": "deepseek-r1",
            "priority": "standard",
            "protocol": "rest",
            "route": "/v1/chat/completions",
            "outcome": "ok",
            "prompt_tokens": 10,
            "cached_tokens": 4,
            "output_tokens": 20,
            "rank_us": 1_000_000,
            "duration_us": 1_500_000,
        }
        | fields
    )


def usages(number, prefix="r", **fields):
    return [usage(f"{prefix}-{index}", **fields) for index in range(number)]


def capacity(slot=DAY, group="g0", *, seconds=60, gpus=8, busy=0.0):
    """Return the record of a group's slot; ``busy`` is the share of its GPU time."""
    return GroupCapacity(slot, group, seconds, gpus, round(busy * seconds * gpus * SECOND))
