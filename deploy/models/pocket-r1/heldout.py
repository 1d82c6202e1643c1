"""Phrasings that training never sees, for evaluation only.

tests/unit/models compares them with phrasings.py and frames.py. If phrasings like these are added to
the training data because of mistakes found here, replace them with new ones.
"""

from random import Random

import tasks
import traces
from tasks import Problem

_ADD = "Say I earn {a} and then {b}. How much is that in total?|{a} + {b} comes to?|Hmm, {a} plus {b}... what is that?|Answer this sum: {a} + {b}|To {a} add {b}"
_SUB = "Say I had {a} and spent {b}. How much remains?|{a} - {b} comes to?|Hmm, {a} minus {b}... what is that?|Answer this: {a} - {b}|{a}, now subtract {b}"
_MUL = "{a} times {b} comes to?|Hmm, {a} times {b}... what is that?|Answer this product: {a} * {b}|{a}, now multiply by {b}|How much would {a} times {b} be?"
_LARGER = "Is the larger one {a} or {b}?|Who is bigger, {a} or {b}?|{a} against {b}: which is larger?|Tell me the greater of these two: {a}, {b}|Larger of {a} and {b}?"
_SORT = "Smallest to largest, please: {xs}|Get {xs} into ascending order|Write out {xs} so that they increase|These need sorting: {xs}|Which order, lowest to highest, for {xs}?"
_SORT_DOWN = "Largest to smallest, please: {xs}|Get {xs} into descending order|Which order, highest to lowest, for {xs}?|Start with the largest and sort {xs}"
_REVERSE = "Spell me {w} the wrong way round|Type {w} in reverse order|The mirror image of the word {w}?|Which word do I get when I reverse {w}?|Swap the letters of {w} end to end"
_COUNT = (
    "How many times can you spot the letter {l} in {w}?|Total number of {l}'s in {w}?|{w} contains how many {l}'s?|"
    "Go through {w} and count each {l}|Exactly how many {l}'s are in {w}?"
)
_OTHER = "How do I bake a cake?|Why do cats purr?|What should I wear today?|Who won the match?|Can you hear me?"


def draw(rng: Random, task: str) -> Problem:
    """Return a new problem in a held-out phrasing, without noise."""
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
