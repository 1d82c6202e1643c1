"""Chunks of a stream: the fast parser and the one for unusual chunks agree."""

import pytest

from serving.client.chat import Delta, Usage
from serving.client.chunks import parse_chunk, parse_unusual_chunk
from serving.client.errors import ClientError


@pytest.mark.parametrize(
    ("event", "piece"),
    [
        (b'{"choices":[{"delta":{"content":"a","role":"x"}}]}', Delta("a")),
        (
            b'{"choices":[{"delta":{"reasoning":"r","content":null}}],"usage":null}',
            Delta(reasoning="r"),
        ),
        (
            b'{"choices":[{"delta":{"reasoning":"r","reasoning_content":"r"}}]}',
            Delta(reasoning="r"),
        ),
        (b'{"choices":[{"text":"t"},{"text":"u"}]}', Delta("tu")),
        (b'{"choices":[{"delta":{},"finish_reason":"stop"}]}', Delta("")),
        (b'{"choices":null}', Delta("")),
        (b'{"object":"odd","error":null}', Delta("")),
        (
            b'{"usage":{"prompt_tokens":3,"prompt_tokens_details":{"cached_tokens":1}}}',
            Delta(usage=Usage(3, 0, 1)),
        ),
        (b'{"choices":[],"usage":{"completion_tokens":4}}', Delta(usage=Usage(0, 4, 0))),
    ],
    ids=lambda value: value.decode() if isinstance(value, bytes) else "",
)
def test_both_ways_give_the_same(event, piece):
    assert parse_chunk(event) == parse_unusual_chunk(event) == piece


@pytest.mark.parametrize(
    ("event", "says"),
    [
        (b'{"error":{"message":"gone"}}', "gone"),
        (b"not json", "invalid chunk"),
        (b'{"choices":[{"delta":{"content":5}}]}', "invalid chunk"),
        (b'{"choices":5}', "invalid chunk"),
        (b"\xff", "invalid chunk"),
    ],
)
def test_what_is_no_chunk_breaks_the_answer(event, says):
    for read in (parse_chunk, parse_unusual_chunk):
        with pytest.raises(ClientError, match=says) as broken:
            read(event)
        assert broken.value.kind == "broken"
