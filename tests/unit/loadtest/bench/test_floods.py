"""The flood benchmark: the bytes of floods, and the page."""

import json
from pathlib import Path

import pytest
from hpack import Decoder
from hyperframe.frame import ContinuationFrame, Frame, HeadersFrame

from loadtest.bench.flood_bytes import PREFACE, WRITE, http1_floods, http2_floods
from loadtest.bench.flood_tables import markdown, more

PERFORMANCE = Path(__file__).resolve().parents[4] / "deploy" / "docs" / "performance"
FLOODS = {flood.name: flood for flood in http2_floods("/a.B/c")}


def test_the_page_shows_the_data_that_is_committed():
    data = json.loads((PERFORMANCE / "floods.json").read_text("utf-8"))
    assert (PERFORMANCE / "floods.md").read_text("utf-8") == markdown(data)


def test_every_flood_is_in_the_table():
    data = json.loads((PERFORMANCE / "floods.json").read_text("utf-8"))
    measured = {row["flood"] for row in data["rows"]}
    assert measured == {*FLOODS, *(flood.name for flood in http1_floods("/a"))}


def test_what_is_longer_than_without_a_flood():
    side = {"quiet": {"grpc": 10.0, "rest": 9.0}, "worst": {"grpc": 30.5, "rest": 4.0}}
    assert more(side) == {"grpc": 20.5, "rest": 0.0}


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_is_made_of_whole_frames(name):
    """Headers, where they are complete, can be decoded by a slow receiver."""
    flood = FLOODS[name]
    data = (flood.opening + next(flood.bodies())).removeprefix(PREFACE)
    assert len(data) >= 0.9 * WRITE
    if flood.churn:
        return
    decoder, block = Decoder(2**20), b""
    while data:
        frame, length = Frame.parse_frame_header(memoryview(data[:9]))
        frame.parse_body(memoryview(data[9 : 9 + length]))
        data = data[9 + length :]
        if isinstance(frame, HeadersFrame | ContinuationFrame):
            block += frame.data
            if "END_HEADERS" in frame.flags and "updates" not in name:
                assert decoder.decode(block, raw=True)
                block = b""
