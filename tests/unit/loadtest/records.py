"""Records for tests."""

from loadtest.record import Record


def record(index=0, **changes) -> Record:
    """A request due at ``index`` seconds, first token after 0.1 s, 11 tokens 0.02 s apart."""
    at = float(index)
    values = {
        "stage": 0,
        "session": index,
        "turn": 0,
        "phase": "measure",
        "intended": at,
        "sent": at,
        "first": at + 0.1,
        "end": at + 0.3,
        "prompt_tokens": 10,
        "output_tokens": 11,
        "cached_tokens": 0,
        "gaps_ms": (20.0,) * 10,
    }
    return Record(index, **{**values, **changes})
