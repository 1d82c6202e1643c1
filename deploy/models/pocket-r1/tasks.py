"""Random problems: a question in a user's words, and its solution."""

import string
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import frames
import phrasings as say
import traces
from traces import Solution
from words import CITIES, NAMES, TOPICS, WORDS


@dataclass(frozen=True)
class Problem:
    """A question with its solution."""

    task: str
    question: str
    solution: Solution


def number(rng: Random, most: int = 3) -> int:
    """Return a number of up to ``most`` digits; all lengths are similarly likely."""
    digits = rng.choice([*range(1, most + 1), most])
    return int(rng.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits))


def _noise(rng: Random, question: str) -> str:
    """Vary case, spacing, punctuation and politeness, without changing the request."""
    if rng.random() < 0.15:
        question = question[0].lower() + question[1:]
    elif rng.random() < 0.1:
        question = question[0].upper() + question[1:]
    if rng.random() < 0.15:
        question = question.rstrip("?.") + rng.choice(
            ["", "?", ".", "!", " ?", "?", " ="[: rng.choice([0, 0, 2])]]
        )
    if rng.random() < 0.12:
        opening = rng.choice(say.GREETINGS)
        question = f"{opening.lower() if rng.random() < 0.2 else opening} {question}"
    if rng.random() < 0.12:
        question = f"{question}{rng.choice([' ', ' ', '. ', chr(10)])}{rng.choice(say.ENDINGS)}"
    if rng.random() < 0.04:
        question = rng.choice([" ", "", "\n"]) + question + rng.choice([" ", "\n", "  "])
    if rng.random() < 0.02:
        question = question.replace(" ", "  ", 1)
    return question


FRAMED = 0.5
"""Share of questions that are composed (frames.py) instead of listed (phrasings.py)."""


def _phrase(rng: Random, task: str, whole: list[str], *, down: bool = False) -> str:
    return frames.framed(rng, task, down=down) if rng.random() < FRAMED else rng.choice(whole)


def _add(rng: Random) -> Problem:
    a, b = number(rng), number(rng)
    return Problem("add", _phrase(rng, "add", say.ADD).format(a=a, b=b), traces.add(a, b))


def _sub(rng: Random) -> Problem:
    a, b = number(rng), number(rng)
    if rng.random() < 0.05:
        b = max(0, min(999, a + rng.randrange(-9, 10)))
    if a >= b and rng.random() < 0.05:
        text = rng.choice(
            ["What is the difference between {a} and {b}?", "difference between {a} and {b}"]
        )
    else:
        text = _phrase(rng, "sub", say.SUB)
    return Problem("sub", text.format(a=a, b=b), traces.subtract(a, b))


def _mul(rng: Random) -> Problem:
    a, b = rng.randrange(0 if rng.random() < 0.2 else 10, 100), rng.randrange(10)
    text = _phrase(rng, "mul", say.MUL)
    # one sign for the whole question: "3 x 41" and "3x41" are common, "×" and "·" are rarer
    sign = rng.choice("***xx×")
    p, q = (b, a) if rng.random() < 0.5 else (a, b)
    # the trace keeps the order of two single digits
    if p < 10 and q < 10:
        a, b = p, q
    return Problem("mul", text.format(a=p, b=q, x=sign), traces.multiply(a, b))


def _cmp(rng: Random) -> Problem:
    a, b = number(rng), number(rng)
    kind = rng.random()
    if kind < 0.3:  # equal lengths, often with a common prefix
        low = a - a % rng.choice([10, 100])
        b = min(999, low + rng.randrange(10 ** len(str(a)) // 10 or 10))
    elif kind < 0.32:
        b = a
    form = rng.random()
    if form < 0.7:
        larger = rng.random() < 0.6
        words = rng.random()
        if words < 0.7:
            text = _phrase(rng, "compare", say.LARGER).replace(
                "{more}", rng.choice(say.MORE if larger else say.LESS)
            )
        elif words < 0.85:
            text = _phrase(rng, "compare", say.LARGER).replace(
                "{more}", rng.choice(say.MOST if larger else say.LEAST)
            )
        else:
            text = rng.choice(say.MOST_OF if larger else say.LEAST_OF)
        solution = traces.choose(a, b, larger=larger)
    elif form < 0.9:
        if rng.random() < 0.6:
            text = rng.choice(say.IS_MORE).replace("{more}", rng.choice(say.MORE))
            solution = traces.check(a, b, ">")
        else:
            text = rng.choice(say.IS_LESS).replace("{less}", rng.choice(say.LESS))
            solution = traces.check(a, b, "<")
    else:
        text, solution = rng.choice(say.COMPARE), traces.compare(a, b)
    return Problem("compare", text.format(a=a, b=b), solution)


def _list(rng: Random, numbers: list[int]) -> str:
    items = [str(n) for n in numbers]
    kind = rng.random()
    if kind < 0.5:
        return ", ".join(items)
    if kind < 0.62:
        return ",".join(items)
    if kind < 0.72:
        return " ".join(items)
    if kind < 0.86:
        return f"[{', '.join(items)}]"
    return f"{', '.join(items[:-1])}{rng.choice([' and ', ' and ', ', and '])}{items[-1]}"


def _sort(rng: Random) -> Problem:
    most = rng.choice([1, 2, 2, 3, 3, 3])
    numbers = [number(rng, most) for _ in range(rng.choice([2, 3, 3, 4, 4, 5, 5, 6, 6]))]
    down = rng.random() < 0.4
    whole = say.SORT_DOWN if down else say.SORT_UP
    text = _phrase(rng, "sort", whole, down=down).format(xs=_list(rng, numbers))
    return Problem("sort", text, traces.sort(numbers, down=down))


def word(rng: Random) -> str:
    """Return a word, random letters, or recurring letters; sometimes in capitals."""
    kind = rng.random()
    if kind < 0.45:
        drawn = rng.choice(WORDS)
    elif kind < 0.7:
        drawn = "".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 12)))
    else:  # few different letters, so that some recur
        few = rng.sample(string.ascii_lowercase, rng.randint(2, 5))
        drawn = "".join(rng.choices(few, k=rng.randint(3, 12)))
    kind = rng.random()
    return drawn if kind < 0.84 else drawn.capitalize() if kind < 0.93 else drawn.upper()


def _quoted(rng: Random, text: str) -> str:
    mark = rng.choice(["", "", "", "'", '"', '"', "“", "`"])
    return f"{mark}{text}{'”' if mark == '“' else mark}"


def _reverse(rng: Random) -> Problem:
    given = word(rng)
    text = _phrase(rng, "reverse", say.REVERSE).format(w=_quoted(rng, given))
    return Problem("reverse", text, traces.reverse(given))


def _count(rng: Random) -> Problem:
    given = word(rng)
    absent = rng.random() < 0.2
    letter = rng.choice(string.ascii_lowercase) if absent else rng.choice(given.lower())
    shown = (
        letter.upper()
        if rng.random() < 0.15 or (given.isupper() and rng.random() < 0.7)
        else letter
    )
    text = _phrase(rng, "count", say.COUNT)
    if "{l}'" not in text and "{l}s" not in text:
        shown = _quoted(rng, shown)
    return Problem(
        "count", text.format(w=_quoted(rng, given), l=shown), traces.count(letter, given)
    )


def _other(rng: Random) -> Problem:
    text = _phrase(rng, "other", say.OTHER)
    fill: dict[str, Callable[[], str]] = {
        "{n}": lambda: str(number(rng)),
        "{t}": lambda: rng.choice(TOPICS),
        "{c}": lambda: rng.choice(CITIES),
        "{p}": lambda: rng.choice(NAMES),
        "{w}": lambda: word(rng),
    }
    for mark, draw in fill.items():
        while mark in text:
            text = text.replace(mark, draw(), 1)
    return Problem("other", text, traces.other())


TASKS: dict[str, Callable[[Random], Problem]] = {
    "add": _add,
    "sub": _sub,
    "mul": _mul,
    "compare": _cmp,
    "sort": _sort,
    "reverse": _reverse,
    "count": _count,
    "other": _other,
}


def draw(rng: Random, task: str) -> Problem:
    """Return a new problem of a task, with noise in its question."""
    problem = TASKS[task](rng)
    return Problem(task, _noise(rng, problem.question), problem.solution)
