"""Phrasings that training never sees, for evaluation only."""

from random import Random

import tasks
import traces
from tasks import Problem

_ADD = "Could you add {a} and {b}?|what's {a}+{b}|Please work out the sum {a} + {b}|I need {a} plus {b}|{a} + {b}?"
_SUB = "Could you subtract {b} from {a}?|what's {a}-{b}|I need {a} minus {b}|{a} - {b}?|Please work out {a} minus {b}"
_MUL = "Could you multiply {a} by {b}?|what's {a}*{b}|I need {a} times {b}|{a} * {b}?|Please work out {a} times {b}"
_LARGER = "Tell me the larger of {a} and {b}|Which is bigger: {a} or {b}|Which value is greater, {a} or {b}?"
_SORT = "Please sort these: {xs}|Could you sort {xs} for me?|Sort the numbers: {xs}|sort: {xs}"
_SORT_DOWN = "Please sort these in descending order: {xs}|Sort {xs} from high to low|Sort in descending order: {xs}"
_REVERSE = "Could you reverse the word {w}?|Please spell {w} backwards|The word {w} in reverse|Reverse: {w}"
_COUNT = (
    "Could you count the letter {l} in {w}?|How many times does {l} appear in {w}?|"
    "how many {l}'s does {w} have|Number of {l}'s in the word {w}?"
)
_OTHER = "Which city is the biggest in Spain?|Tell me a story|How do magnets work?|Who is the president?|What's up?"


def draw(rng: Random, task: str) -> Problem:
    """A fresh problem in a held-out phrasing, without further noise."""
    pick = tasks.number
    if task in ("add", "sub"):
        a, b = pick(rng), pick(rng)
        solved = traces.add(a, b) if task == "add" else traces.subtract(a, b)
        return Problem(
            task, rng.choice((_ADD if task == "add" else _SUB).split("|")).format(a=a, b=b), solved
        )
    if task == "mul":
        a, b = rng.randrange(10, 100), rng.randrange(10)
        p, q = rng.choice([(a, b), (b, a)])
        return Problem(task, rng.choice(_MUL.split("|")).format(a=p, b=q), traces.multiply(a, b))
    if task == "compare":
        a, b = pick(rng), pick(rng)
        return Problem(
            task, rng.choice(_LARGER.split("|")).format(a=a, b=b), traces.choose(a, b, larger=True)
        )
    if task == "sort":
        numbers, down = [pick(rng) for _ in range(rng.randint(2, 6))], rng.random() < 0.4
        text = rng.choice((_SORT_DOWN if down else _SORT).split("|")).format(
            xs=", ".join(map(str, numbers))
        )
        return Problem(task, text, traces.sort(numbers, down=down))
    if task == "reverse":
        word = tasks.word(rng)
        return Problem(task, rng.choice(_REVERSE.split("|")).format(w=word), traces.reverse(word))
    if task == "count":
        word = tasks.word(rng)
        letter = rng.choice(word.lower())
        return Problem(
            task, rng.choice(_COUNT.split("|")).format(w=word, l=letter), traces.count(letter, word)
        )
    return Problem(task, rng.choice(_OTHER.split("|")), traces.other())
