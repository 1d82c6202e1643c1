"""What counts as a value of a body, regardless of how it is split; json is the oracle."""

import json
import random
import sys

import pytest

from serving.edge import value_bounds
from serving.edge.value_bounds import JsonBounds, TooManyValues

ODD = '",{[\\]}:\u00e9\n\t1'


def values_in(found):
    """Count objects, lists and the commas in them."""
    if isinstance(found, dict):
        return 1 + max(len(found) - 1, 0) + sum(map(values_in, found.values()))
    if isinstance(found, list):
        return 1 + max(len(found) - 1, 0) + sum(map(values_in, found))
    return 0


def some_value(rng, depth=0):
    kind = rng.randrange(7 if depth < 4 else 4)
    if kind < 2:
        return "".join(rng.choice(ODD) for _ in range(rng.randrange(12)))
    if kind == 2:
        return rng.choice([None, True, 1.5, -1e9, 0])
    if kind == 3:
        return rng.randrange(10**6)
    if kind == 4:
        return {
            some_value(rng, 9) or "k": some_value(rng, depth + 1) for _ in range(rng.randrange(5))
        }
    return [some_value(rng, depth + 1) for _ in range(rng.randrange(6))]


def fits(bounds, body, cuts=()):
    """Return whether the body is within the bounds when it is fed in parts."""
    try:
        for begin, end in zip([0, *cuts], [*cuts, len(body)], strict=True):
            bounds.feed(body[begin:end])
    except TooManyValues:
        return False
    return True


def some_body(rng):
    found = {str(n): some_value(rng) for n in range(rng.randrange(1, 6))}
    body = json.dumps(found, ensure_ascii=rng.random() < 0.5).encode()
    return json.loads(body), body


@pytest.mark.parametrize("size", [3, value_bounds.SLICE])
@pytest.mark.parametrize("seed", range(400))
def test_the_limit_is_exact_wherever_the_body_is_cut(monkeypatch, seed, size):
    monkeypatch.setattr(value_bounds, "SLICE", size)
    rng = random.Random(seed)
    found, body = some_body(rng)
    count = values_in(found)
    cuts = sorted(rng.randrange(len(body) + 1) for _ in range(rng.randrange(6)))
    assert fits(JsonBounds(max_values=count), body, cuts)
    if count > 1:
        assert not fits(JsonBounds(max_values=count - 1), body, cuts)


@pytest.mark.parametrize("step", [1, 7, 1000])
@pytest.mark.parametrize("name", ["prompt", "tokens", "input"])
@pytest.mark.parametrize("nested", [False, True])
def test_token_ids_have_a_limit_of_their_own(step, name, nested):
    ids = [[n] * 10 for n in range(500)] if nested else list(range(5000))
    body = json.dumps({"model": "m", name: ids, "max_tokens": 1}).encode()
    cuts = range(step, len(body), step)
    if step == 1:
        # Each comma by itself is too short to be recognized as a list of ids.
        assert not fits(JsonBounds(max_values=100), body, cuts)
        return
    bounds = JsonBounds(max_values=1000)
    assert fits(bounds, body, cuts) == (step == 1000)
    if step == 1000:
        assert not fits(JsonBounds(max_values=1000, max_ids=4000), body, cuts)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({"stop_token_ids": list(range(5000))}, id="other-names"),
        pytest.param({"prompt": [0.5] * 5000}, id="no-integers"),
        pytest.param({"prompt": ["x"] * 5000}, id="texts"),
        pytest.param({"input": [{}] * 5000}, id="objects"),
        pytest.param({"messages": [1] * 5000}, id="messages"),
        pytest.param({str(n): 1 for n in range(5000)}, id="many-names"),
    ],
)
def test_what_is_no_list_of_token_ids_is_values(body):
    assert not fits(JsonBounds(max_values=4000), json.dumps(body).encode())


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"[" * 10**5, id="brackets"),
        pytest.param(b'"",' * 10**5, id="strings"),
        pytest.param(b'{"a":' * 10**5, id="nested"),
        pytest.param(b"," * 10**5, id="commas"),
    ],
)
def test_what_is_no_json_is_bounded_too(body):
    assert not fits(JsonBounds(max_values=1000), body)


def test_text_is_free():
    body = json.dumps({"prompt": ',[{"\\' * 10**5}).encode()
    assert fits(JsonBounds(max_values=2), body)
    assert fits(JsonBounds(max_values=2), body, range(1, len(body), 999))


def test_an_ordinary_body_is_counted_only():
    """Strings are not scanned for, because that would take a step for each of them."""
    bounds = JsonBounds()
    bounds.feed(json.dumps({"messages": [{"role": "user", "content": "x, y"}] * 1000}).encode())
    assert bounds._strings == 0


@pytest.mark.parametrize(
    "text", [pytest.param("hi", id="plain"), pytest.param('a \\"b\\" \\n', id="escapes")]
)
def test_the_steps_of_python_do_not_grow_with_the_strings(text):
    """A body has thousands of strings; a step for each would take a turn for tens of ms."""

    def steps(messages):
        body = b'{"messages": [' + b",".join(
            [b'{"role": "user", "content": "%b"}' % text.encode()] * messages
        )
        bounds, taken = JsonBounds(max_values=messages * 4), []
        bounds.take(body)
        sys.setprofile(lambda _frame, event, _arg: taken.append(event))
        try:
            bounds.feed(b"]}")
        finally:
            sys.setprofile(None)
        return len(taken)

    assert steps(2_000) <= 10 * steps(20)


def test_a_slice_is_bounded(monkeypatch):
    sizes, counted = [], JsonBounds._count
    monkeypatch.setattr(
        JsonBounds, "_count", lambda self, data: (sizes.append(len(data)), counted(self, data))
    )
    body = b'[1, 2, "x"], ' * 10_000
    JsonBounds(max_values=50_000).feed(body)
    assert sum(sizes) == len(body)
    assert max(sizes) == value_bounds.SLICE
