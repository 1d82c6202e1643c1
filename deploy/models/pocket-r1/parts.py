"""Phrasings in two sentences, the data and the request ("Here is a word: w. Reverse it").

The second sentence refers to the data by a pronoun, so the model must look back for it.
"""

from random import Random

WORD = (
    "Here is a word: {w}.|I have the word {w}.|Take the word {w}.|The word is {w}.|Consider {w}.|Consider the word {w}.|"
    "Given the word {w},|Given {w}:|Look at the word {w}.|My word is {w}.|Word: {w}.|{w}.|{w}:|Let's take {w}.|"
    "This is my word: {w}.|I wrote {w}.|There is the word {w}.|You see the word {w}.|Think of {w}.|I am looking at {w}."
).split("|")
PAIR = (
    "I have {a} and {b}.|Here are two numbers: {a} and {b}.|Take {a} and {b}.|The numbers are {a} and {b}.|Given {a} and {b},|"
    "Two numbers: {a}, {b}.|Consider {a} and {b}.|Look at {a} and {b}.|{a} and {b}.|{a}, {b}:|My numbers are {a} and {b}.|"
    "You have {a} and {b}.|There are {a} and {b}.|Let's take {a} and {b}.|Numbers: {a} and {b}."
).split("|")
LIST = (
    "I have the numbers {xs}.|Here is a list: {xs}.|Here are my numbers: {xs}.|Take {xs}.|The list is {xs}.|Given {xs},|"
    "Given the numbers {xs}:|Consider {xs}.|Look at the list {xs}.|Numbers: {xs}.|{xs}.|{xs}:|My list is {xs}.|"
    "You have {xs}.|There are the numbers {xs}.|Let's take {xs}."
).split("|")

THEN = {
    "add": "What is their sum?|Add them.|Add them up|Please add them|What do they add up to?|What is the total?|Sum them|"
    "How much are they together?|Add the two|What is the sum of the two?|Tell me their sum|Can you add them?|Sum?",
    "sub": "Subtract the second from the first.|What is the first minus the second?|What is left when I take the second from the first?|"
    "Take the second away from the first|First minus second?|Subtract the latter from the former",
    "mul": "Multiply them.|What is their product?|What do you get when you multiply them?|Please multiply them|Multiply the two|"
    "Tell me their product|Can you multiply them?|Product?|What is the product of the two?",
    "compare": "Which one is {more}?|Which is {more}?|Pick the {more} one|Tell me the {more} one.|Which of them is {more}?|"
    "Which of the two is {more}?|Name the {more} one|What is the {more} one?|Which number is {more}?|Find the {more} number",
    "reverse": "Reverse it.|Please reverse it|Spell it backwards|What is it backwards?|What is it in reverse?|Write it in reverse|"
    "Turn it around|Read it from the end|Can you reverse it?|Write it backwards, please|What does it look like backwards?|"
    "Reverse its letters|Now spell that backwards|How is it spelled backwards?|Flip it|What is its reverse?",
    "count": "How many {l}'s are in it?|Count the letter {l} in it|Count the {l}'s.|How many times does {l} appear in it?|"
    "How often does it have {l}?|How many {l}'s does it have?|Tell me how many {l}'s are in it.|How many {l}'s?|Count {l}|"
    "How many of its letters are {l}?|How many times is {l} in it?|Count how often {l} occurs|Please count the {l}'s in it|"
    "How many letters {l} are there?|What is the number of {l}'s in it?|How often do you see {l} in it?|Does it have {l}? How many?",
    "other": "Translate it into French|What does it mean?|Use it in a sentence|Is it a noun?|Write a poem about it|What rhymes with it?|"
    "Explain it|Tell me more about it|Do you like it?|Where is it from?|Draw it|Find a synonym|Say something nice|Divide them|"
    "What is their average?|Who said it?|How do I pronounce it?|Is it prime?|Which of them is even?",
}
_SORT = (
    "Sort them {way}|Put them {way}.|Order them {way}|Arrange them {way}, please|Please sort it {way}|What are they {way}?|Sort this {way}|"
    "Can you sort them {way}?|List them {way}|Sort them, {first}.|Order them {first}|Now {way}, please|Rank them {way}|Sort, {first}"
).split("|")
_THEN = {task: sentences.split("|") for task, sentences in THEN.items()}


def twofold(rng: Random, task: str, way: str, first: str) -> str:
    """Return a question of two sentences; ``way`` and ``first`` are the sort order."""
    if task == "sort":
        then = rng.choice(_SORT).replace("{way}", way).replace("{first}", first)
        start = rng.choice(LIST)
    else:
        then = rng.choice(_THEN[task])
        if task == "other":
            start = rng.choice(
                [*WORD, *WORD, "I have {n} and {n}.", "Here is a number: {n}.", "Think of {c}."]
            )
        else:
            start = rng.choice(WORD if task in ("reverse", "count") else PAIR)
    if start.endswith((",", ":")) and rng.random() < 0.7:
        then = then[0].lower() + then[1:]
    return f"{start} {then}"
