"""Phrasings that training never sees, for evaluation only.

tests/unit/models checks them against phrasings.py and frames.py. Do not look at the mistakes made here
and then add phrasings like them to the training data: write new ones here if that has happened.
"""

from random import Random

import tasks
import traces
from tasks import Problem

_ADD = "What will I get if I add {a} to {b}?|Would you compute {a} + {b} for me?|Can you tell me what {a} plus {b} is?|{a} and {b}, added up|What number is {a} + {b}?"
_SUB = "What will I get if I subtract {b} from {a}?|Would you compute {a} - {b} for me?|Can you tell me what {a} minus {b} is?|From {a} subtract {b}|What number is {a} - {b}?"
_MUL = "What will I get if I multiply {a} by {b}?|Would you compute {a} * {b} for me?|Can you tell me what {a} times {b} is?|Take {a} times {b}|What number is {a} * {b}?"
_LARGER = "Which has the higher value, {a} or {b}?|Would {a} or {b} be the larger one?|Which value is greater, {a} or {b}?"
_SORT = "Give these in ascending order: {xs}|Display {xs} in ascending order|Show me {xs} in sorted order|What order do {xs} go in, from smallest to largest?"
_SORT_DOWN = "Give these in descending order: {xs}|Display {xs} from largest to smallest|What order do {xs} go in, from largest to smallest?"
_REVERSE = "Would you reverse {w} for me?|What would {w} be backwards?|Show the word {w} backwards|Can you write the word {w} backwards?"
_COUNT = (
    "The letter {l} occurs how many times in {w}?|Can you tell me how many {l}'s are in {w}?|"
    "How often is the letter {l} in {w}?|Please count {l} in the word {w}"
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
