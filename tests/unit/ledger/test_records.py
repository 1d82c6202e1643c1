"""Records as lines, including those of an older version, and record ids."""

import pytest

from serving.ledger.records import RecordIds, from_line, to_line
from tests.support.ledgers import capacity, usage


def test_a_record_survives_its_line():
    for record in (usage(reasoning_tokens=3, ttft_us=7), usage(key_id=None), capacity(busy=0.5)):
        line = to_line(record)
        assert line.endswith(b"\n")
        assert line.count(b"\n") == 1
        assert from_line(line) == record


def test_a_line_of_an_older_version_has_the_defaults_of_newer_fields():
    """A spool may be older than the version that reads it."""
    line = (
        b'{"kind":"request","record_id":"a","finished_us":1,"request_id":"r","tenant":"t",'
        b'"key_id":null,"model":"m","priority":"standard","protocol":"rest","route":"/x",'
        b'"outcome":"ok","prompt_tokens":1,"cached_tokens":0,"output_tokens":2,"rank_us":3,'
        b'"duration_us":4}\n'
    )
    assert from_line(line).resumptions == 0
    assert from_line(line).adapter is None


@pytest.mark.parametrize("line", [b"", b"{}", b'{"kind":"other"}', b'{"kind":"request"}', b"\xff"])
def test_other_lines_are_no_records(line):
    with pytest.raises(ValueError, match=r"."):
        from_line(line)


def test_ids_differ_within_and_between_routers():
    one, other = RecordIds(), RecordIds()
    ids = [next(source) for source in (one, other) for _ in range(100)]
    assert len({*ids}) == 200
    assert max(map(len, ids)) <= 64
