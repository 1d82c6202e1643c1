"""Odd values, and ways to put them into a valid request, from a seeded generator."""

import copy
import random
import string
from collections.abc import Iterator
from typing import Any

NESTED: Any = None
for _ in range(40):
    NESTED = [NESTED]

SCALARS: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    255,
    65535,
    65536,
    2**31 - 1,
    2**31,
    -(2**31) - 1,
    2**63 - 1,
    2**63,
    -(2**63) - 1,
    2**64,
    10**40,
    0.0,
    -0.0,
    0.5,
    1e-320,
    1e308,
    -1e308,
    float("nan"),
    float("inf"),
    "",
    " ",
    "x",
    "-1",
    "null",
    "auto",
    "none",
    "required",
    "pocket-r1",
    "\u0000",
    "\ud800",
    "\ufffe\uffff",
    "é" * 7,
    "🙂",
    "{{ 7 * 7 }}",
    "{% for x in range(999999999) %}{% endfor %}",
    "<think></think>",
    "<|im_start|>",
    "../../etc/passwd",
    "file:///etc/passwd",
    "data:image/png;base64,AAAA",
    "http://127.0.0.1:1/x.png",
    "a" * 5000,
)
CONTAINERS: tuple[Any, ...] = (
    [],
    {},
    [[]],
    [None],
    [{}],
    {"": None},
    {"type": "object"},
    {"type": None},
    {"a": {"b": {"c": []}}},
    [0, -1, 2**40],
    [""] * 3,
    list(range(300)),
    {str(number): number for number in range(300)},
    NESTED,
)


def odd_value(rng: random.Random) -> Any:
    """Return any value that a program might send by mistake, or an attacker on purpose."""
    kind = rng.random()
    if kind < 0.6:
        return rng.choice(SCALARS)
    if kind < 0.8:
        return copy.deepcopy(rng.choice(CONTAINERS))
    if kind < 0.9:
        return rng.randint(-(2 ** rng.randint(1, 70)), 2 ** rng.randint(1, 70))
    return "".join(rng.choices(string.printable, k=rng.randint(0, 40)))


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Walk every place in a JSON value except the root."""
    items: Iterator[tuple[Any, Any]] = iter(())
    if isinstance(value, dict):
        items = iter(value.items())
    elif isinstance(value, list):
        items = iter(enumerate(value[:20]))
    for key, inner in items:
        yield (*path, key)
        yield from paths(inner, (*path, key))


def mutate(rng: random.Random, body: Any, fields: dict[str, tuple[Any, ...]]) -> Any:
    """Return a copy of ``body`` with one to three defects.

    Args:
        rng: random generator.
        body: a valid request.
        fields: names of the request's fields, with values for each that are plausible or
            known to be dangerous; any odd value may be used instead.

    """
    body = copy.deepcopy(body)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(paths(body))
        kind = rng.random()
        if kind < 0.45 or not places:
            name = rng.choice(sorted(fields))
            own = fields[name]
            body[name] = copy.deepcopy(
                rng.choice(own) if own and rng.random() < 0.6 else odd_value(rng)
            )
            continue
        *way, last = rng.choice(places)
        inside = body
        for key in way:
            inside = inside[key]
        if kind < 0.85:
            inside[last] = odd_value(rng)
        elif kind < 0.93:
            del inside[last]
        elif isinstance(inside, list):
            inside.extend([copy.deepcopy(inside[last])] * rng.choice((1, 5, 100)))
        else:
            inside[str(odd_value(rng))] = inside[last]
    return body
