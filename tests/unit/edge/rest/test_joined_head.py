"""Heads are sent together with the data that follows them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.edge.rest.joined_head import JoinedHead


class Wire:
    """The underlying transport, and an event loop that only collects scheduled calls."""

    def __init__(self):
        self.sent: list[bytes | None] = []
        self.soon = []
        self.call_soon = self.soon.append

    def write(self, data):
        self.sent.append(data)

    def close(self):
        self.sent.append(None)

    def is_closing(self):
        return None in self.sent

    def turn(self):
        due = self.soon[:]
        self.soon.clear()
        for each in due:
            each()


@pytest.mark.parametrize(
    ("steps", "sent"),
    [
        pytest.param([b"head", b"body"], [b"headbody"], id="one write"),
        pytest.param([b"head", b""], [b"head"], id="no body"),
        pytest.param([b"head", "turn", b"a", b"b"], [b"head", b"a", b"b"], id="late body"),
        pytest.param([b"head", b"a", "turn", b"b"], [b"heada", b"b"], id="stream"),
        pytest.param([b"head", "close"], [b"head", None], id="closed without a body"),
        pytest.param([b"head", b"body", "close", "turn"], [b"headbody", None], id="closed"),
        pytest.param(["turn", "close"], [None], id="nothing"),
    ],
)
def test_a_head_leaves_with_what_follows_it(steps, sent):
    wire = Wire()
    response = JoinedHead(wire, wire)
    calls = {"turn": wire.turn, "close": response.close}
    for step in steps:
        calls[step]() if isinstance(step, str) else response.write(step)
    wire.turn()
    assert wire.sent == sent
    assert response.is_closing() is (None in sent)


@given(st.lists(st.one_of(st.just("turn"), st.just("flush"), st.binary(max_size=3))))
def test_bytes_keep_their_order(steps):
    wire = Wire()
    response = JoinedHead(wire, wire)
    calls = {"turn": wire.turn, "flush": response.flush}
    for step in steps:
        calls[step]() if isinstance(step, str) else response.write(step)
    wire.turn()
    assert b"".join(wire.sent) == b"".join(step for step in steps if isinstance(step, bytes))
