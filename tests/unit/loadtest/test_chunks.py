"""Chunks of a stream are read fast where they are ordinary, and alike where they are not."""

import pytest

from loadtest.rest_target import _odd_piece, _piece
from loadtest.target import Piece, TargetError, Usage


@pytest.mark.parametrize(
    ("event", "piece"),
    [
        (b'{"choices":[{"delta":{"content":"a","role":"x"}}]}', Piece("a")),
        (b'{"choices":[{"delta":{"reasoning":"r","content":null}}],"usage":null}', Piece("r")),
        (b'{"choices":[{"delta":{"reasoning":"r","reasoning_content":"r"}}]}', Piece("r")),
        (b'{"choices":[{"text":"t"},{"text":"u"}]}', Piece("tu")),
        (b'{"choices":[{"delta":{},"finish_reason":"stop"}]}', Piece("")),
        (b'{"choices":null}', Piece("")),
        (b'{"object":"odd","error":null}', Piece("")),
        (
            b'{"usage":{"prompt_tokens":3,"prompt_tokens_details":{"cached_tokens":1}}}',
            Piece("", Usage(3, 0, 1)),
        ),
        (b'{"choices":[],"usage":{"completion_tokens":4}}', Piece("", Usage(0, 4, 0))),
    ],
    ids=lambda value: value.decode() if isinstance(value, bytes) else "",
)
def test_both_ways_give_the_same(event, piece):
    assert _piece(event) == _odd_piece(event) == piece


@pytest.mark.parametrize(
    ("event", "says"),
    [
        (b'{"error":{"message":"gone"}}', "gone"),
        (b"not json", "not a chunk"),
        (b'{"choices":[{"delta":{"content":5}}]}', "not a chunk"),
        (b'{"choices":5}', "not a chunk"),
        (b"\xff", "not a chunk"),
    ],
)
def test_what_is_no_chunk_breaks_the_answer(event, says):
    for read in (_piece, _odd_piece):
        with pytest.raises(TargetError, match=says) as broken:
            read(event)
        assert broken.value.kind == "broken"
