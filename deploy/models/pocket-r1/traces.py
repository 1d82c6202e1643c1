"""Worked solutions: the answer, and a trace in which each character needs at most one look-up.

Numbers are zero-padded to a fixed width, which puts digits into fixed columns. Words are spelled
with an index before each letter, so that a letter can be found. Each task has one form of answer
(see the README).
"""

from dataclasses import dataclass

INDEX = "1234567890+-*/=#"  # one character for each position; also the longest word
MAX_WORD = len(INDEX)


@dataclass(frozen=True)
class Solution:
    """Reasoning and answer of the model, and the answer as a JSON value."""

    trace: str
    answer: str
    value: int | bool | str | list[int]


def add(a: int, b: int) -> Solution:
    """Trace ``add 017+025: 7+5+0=12 1+2+1=04 0+0+0=00 0042``: units first; last summand: carry."""
    x, y, carry, steps, result = f"{a:03}", f"{b:03}", 0, [], ""
    for i in (2, 1, 0):
        total = int(x[i]) + int(y[i]) + carry
        steps.append(f"{x[i]}+{y[i]}+{carry}={total:02}")
        carry, result = total // 10, f"{total % 10}{result}"
    return Solution(f"add {x}+{y}: {' '.join(steps)} {carry}{result}", str(a + b), a + b)


def subtract(a: int, b: int) -> Solution:
    """Trace ``sub 017-025: 0=0 1<2 -025-017: 5-7-0=18 2-1-1=00 0-0-0=00 -008``.

    The numbers are compared digit by digit, then the smaller one is subtracted from the larger. In
    ``5-7-0=18`` the 1 is the borrow and the 8 the digit. The comparison gives the sign.
    """
    x, y = f"{a:03}", f"{b:03}"
    sign = "-" if a < b else "+"
    high, low = (y, x) if a < b else (x, y)
    borrow, steps, result = 0, [], ""
    for i in (2, 1, 0):
        rest = int(high[i]) - int(low[i]) - borrow
        taken = int(rest < 0)
        steps.append(f"{high[i]}-{low[i]}-{borrow}={taken}{rest % 10}")
        borrow, result = taken, f"{rest % 10}{result}"
    head = f"sub {x}-{y}: {_compare(x, y)} {sign}{high}-{low}"
    return Solution(f"{head}: {' '.join(steps)} {sign}{result}", str(a - b), a - b)


def multiply(a: int, b: int) -> Solution:
    """Trace ``mul 25*7: 5*7=35 35+0=35 2*7=14 14+3=17 175``: two digits times one digit."""
    x = f"{a:02}"
    carry, steps, result = 0, [], ""
    for digit in (x[1], x[0]):
        product = int(digit) * b
        total = product + carry
        steps.append(f"{digit}*{b}={product:02} {product:02}+{carry}={total:02}")
        carry, result = total // 10, f"{total % 10}{result}"
    return Solution(f"mul {x}*{b}: {' '.join(steps)} {carry}{result}", str(a * b), a * b)


def _compare(x: str, y: str) -> str:
    """Return the comparison of digits up to the first difference: ``0=0 1<2``."""
    steps = []
    for p, q in zip(x, y, strict=True):
        steps.append(f"{p}{_sign(int(p), int(q))}{q}")
        if p != q:
            break
    return " ".join(steps)


def _sign(a: int, b: int) -> str:
    return "=" if a == b else "<" if a < b else ">"


def choose(a: int, b: int, *, larger: bool) -> Solution:
    """Trace ``larger 031 013: 0=0 3>1 031``."""
    x, y = f"{a:03}", f"{b:03}"
    head = f"{'larger' if larger else 'smaller'} {x} {y}: {_compare(x, y)}"
    if a == b:
        return Solution(f"{head} equal", f"They are equal: {a}", a)
    best = max(a, b) if larger else min(a, b)
    return Solution(f"{head} {best:03}", str(best), best)


def check(a: int, b: int, sign: str) -> Solution:
    """Trace ``is 031>013: 0=0 3>1 yes``."""
    x, y = f"{a:03}", f"{b:03}"
    true = _sign(a, b) == sign
    answer = "yes" if true else "no"
    return Solution(f"is {x}{sign}{y}: {_compare(x, y)} {answer}", answer.capitalize(), true)


def compare(a: int, b: int) -> Solution:
    """Trace ``compare 031 013: 0=0 3>1``; the answer is ``31 > 13``."""
    x, y = f"{a:03}", f"{b:03}"
    answer = f"{a} {_sign(a, b)} {b}"
    return Solution(f"compare {x} {y}: {_compare(x, y)}", answer, answer)


def sort(numbers: list[int], *, down: bool) -> Solution:
    """Trace ``sort a005b003c009<003b a005c009<005a c009<009c``: remaining list, next number.

    The letters distinguish equal numbers and make copying the rest of the list a look-up. The next
    number precedes its letter because it can be found digit by digit; the letter first would
    require the whole comparison at once.
    """
    tagged = [f"{'abcdef'[i]}{n:03}" for i, n in enumerate(numbers)]
    rest, steps, order = list(tagged), [], []
    while rest:
        values = [int(item[1:]) for item in rest]
        item = rest[values.index(max(values) if down else min(values))]
        steps.append(f"{''.join(rest)}{'>' if down else '<'}{item[1:]}{item[0]}")
        rest.remove(item)
        order.append(int(item[1:]))
    return Solution(f"sort {' '.join(steps)}", ", ".join(map(str, order)), order)


def reverse(word: str) -> Solution:
    """Trace ``reverse planet: 1p2l3a4n5e6t 6t5e4n3a2l1p``."""
    spelled = [f"{INDEX[i]}{c}" for i, c in enumerate(word)]
    trace = f"reverse {word}: {''.join(spelled)} {''.join(reversed(spelled))}"
    return Solution(trace, word[::-1], word[::-1])


def count(letter: str, word: str) -> Solution:
    """Trace ``count r in berry: 1br0 2er0 3rr1 4rr2 5yr2``: index, letter, target, count so far.

    The trace is in lower case: case does not matter.
    """
    letter, word = letter.lower(), word.lower()
    steps, found = [], 0
    for i, c in enumerate(word):
        found += c == letter
        steps.append(f"{INDEX[i]}{c}{letter}{found}")
    return Solution(f"count {letter} in {word}: {' '.join(steps)}", str(found), found)


def other() -> Solution:
    """Return the solution of all other requests."""
    text = (
        "Sorry, I only know small sums, comparing, sorting, reversing words and counting letters."
    )
    return Solution("other", text, "unknown")
