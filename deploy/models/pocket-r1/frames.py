"""Phrasings put together from parts: what is asked, in a frame that could hold anything.

``phrasings.py`` lists whole sentences; people have more of them than a list holds. Here every task
has things to do ("add {a} and {b}"), things to name ("the sum of {a} and {b}") and things to
tell ("how many {l}'s are in {w}"), and each fits into any frame of its kind. The other requests
come in the same frames, so that a frame alone says nothing.
"""

from random import Random

# frames for something to do; {i} as it is, {I} with a capital
DO = (
    "{i}|{I}|{I}.|{I}!|Please {i}|please {i}.|Can you {i}?|Could you {i}?|Would you {i}?|Will you {i}?|"
    "Can you {i} for me?|Could you {i} for me?|Would you please {i}?|Could you please {i}|"
    "I want you to {i}|I need you to {i}.|I'd like you to {i}|I would like you to {i}.|Help me {i}|"
    "Help me to {i}.|What do I get if I {i}?|What do you get if you {i}?|What happens when you {i}?|"
    "What comes out if I {i}?|What would you get if you {i}?|What is the result if I {i}?|"
    "Your task is to {i}.|Your task: {i}|Your job is to {i}|Let's {i}|Let us {i}.|Try to {i}|Now {i}|"
    "{I}, please|{I}, please.|{I} for me|{I} for me, please|Kindly {i}|Go ahead and {i}|You should {i}|"
    "{I} and tell me the result|{I} and give me the answer.|I have to {i}|I must {i}|How would you {i}?|"
    "Are you able to {i}?|Is it possible for you to {i}?|Do you mind if I ask you to {i}?|"
    "My homework is to {i}|Exercise: {i}|The task is to {i}.|First, {i}|Next, {i}|Quickly {i}|Just {i}|"
    "Be so kind and {i}|It would be nice if you could {i}|Do this: {i}|In this exercise you {i}"
).split("|")

# frames for something to name
NAME = (
    "What is {n}?|What's {n}?|what is {n}|Tell me {n}|Tell me {n}.|Give me {n}|Give me {n}, please|Find {n}|"
    "Find {n}.|Say {n}|I need {n}|I want {n}.|I'm looking for {n}|I am looking for {n}.|Do you know {n}?|"
    "Can you give me {n}?|Could you give me {n}?|Could you tell me {n}?|Please tell me {n}|Please give me {n}.|"
    "Compute {n}|Calculate {n}|Determine {n}|Determine {n}.|Figure out {n}|Work out {n}.|What would be {n}?|"
    "What might {n} be?|{N}?|{N}|{N}, please|{N}, please.|Return {n}|Output {n}|Write {n}|Write down {n}|"
    "How about {n}?|I would like to know {n}|I want to know {n}.|Let me know {n}|The answer to this: {n}|"
    "My question is: {n}|I need to know {n}|Can you find {n}?|Can you work out {n}?|Print {n}|Report {n}|"
    "Let me see {n}|Provide {n}|Please provide {n}.|Please find {n}|State {n}|I ask for {n}"
).split("|")

# frames for something to tell, which begins with a question word
TELL = (
    "Tell me {n}|Tell me {n}.|Please tell me {n}|Do you know {n}?|I want to know {n}|I'd like to know {n}.|"
    "I wonder {n}|Let me know {n}|Find out {n}|Figure out {n}.|Could you say {n}?|Could you tell me {n}?|"
    "{N}?|{N}|{n}|Say {n}|My question is {n}|Work out {n}|Please work out {n}.|Can you see {n}?|"
    "Determine {n}|I need to know {n}|Are you able to tell me {n}?|Can you say {n}?|Question: {N}?|Check {n}"
).split("|")

_SORTING = "sort|order|arrange|rank|organize|reorder|rearrange|sequence|sort out".split("|")
_PLACING = (
    "put|list|write|line up|place|return|output|present|state|enumerate|lay out|read out|set".split(
        "|"
    )
)
_UP = (
    "in ascending order|in increasing order|from smallest to largest|from low to high|from least to greatest|"
    "from smallest to biggest|from lowest to highest|from small to large|with the smallest first|"
    "with the lowest first|starting with the smallest|starting from the lowest|by size|in order|numerically|"
    "so that the smallest comes first|by size, smallest first|upwards"
).split("|")
_DOWN = (
    "in descending order|in decreasing order|from largest to smallest|from high to low|from greatest to least|"
    "from biggest to smallest|from highest to lowest|from large to small|with the largest first|"
    "with the highest first|starting with the biggest|starting from the highest|backwards by size|"
    "so that the largest comes first|by size, largest first|downwards|in reverse order"
).split("|")
_FIRST_UP = "smallest first|lowest first|small to large|low to high|ascending|increasing".split("|")
_FIRST_DOWN = "largest first|highest first|biggest first|large to small|high to low|descending|decreasing".split(
    "|"
)
_LISTS = "{xs}|{xs}|the numbers {xs}|these numbers: {xs}|the list {xs}|the following: {xs}|these: {xs}".split(
    "|"
)
_ASKING = (
    "How would you arrange {xs} {way}?|How do you sort {xs} {way}?|How do {xs} look when sorted {way}?|"
    "What is the right order of {xs}, {first}?|What is the order of {xs}, {first}?|What do {xs} look like {way}?|"
    "What is the sequence of {xs} {way}?|How should I order {xs} {way}?|What would {xs} be {way}?|"
    "In what order should I put {xs}, {first}?|What comes out when {xs} is sorted {way}?|{xs} - {first}|"
    "{xs}: sort them {way}|{xs}. Put them {way}.|Given {xs}, sort {way}|Here are some numbers: {xs}. Sort them {way}.|"
    "Take {xs} and sort them {way}|I have {xs}. What are they {way}?|The numbers are {xs}. Order them {way}.|"
    "How does {xs} read {way}?|{first}: {xs}|Numbers {xs}, {first}, please"
).split("|")

TO_DO = {
    "add": "add {a} and {b}|add {a} to {b}|add up {a} and {b}|sum {a} and {b}|sum up {a} and {b}|compute {a} + {b}|"
    "calculate {a} plus {b}|work out {a}+{b}|find the sum of {a} and {b}|put {a} and {b} together|total {a} and {b}|"
    "figure out {a} plus {b}|evaluate {a} + {b}|solve {a} + {b}|do the sum {a} + {b}|increase {a} by {b}|"
    "start with {a} and add {b}|take {a} and add {b}|combine {a} and {b}|do {a} plus {b}|calculate {a}+{b}",
    "sub": "subtract {b} from {a}|take {b} from {a}|take {b} away from {a}|deduct {b} from {a}|remove {b} from {a}|"
    "compute {a} - {b}|calculate {a} minus {b}|work out {a}-{b}|find {a} minus {b}|evaluate {a} - {b}|solve {a} - {b}|"
    "figure out {a} minus {b}|decrease {a} by {b}|reduce {a} by {b}|start with {a} and subtract {b}|do {a} minus {b}|"
    "take {a} and subtract {b}|calculate {a}-{b}",
    "mul": "multiply {a} by {b}|multiply {a} and {b}|multiply {a} with {b}|compute {a} {x} {b}|calculate {a} times {b}|"
    "work out {a}{x}{b}|find the product of {a} and {b}|evaluate {a} {x} {b}|solve {a} {x} {b}|figure out {a} times {b}|"
    "take {a} and multiply it by {b}|do {a} times {b}|calculate {a}{x}{b}",
    "compare": "pick the {more} of {a} and {b}|choose the {more} number, {a} or {b}|name the {more} of {a} and {b}|"
    "find the {more} one of {a} and {b}|select the {more} of {a} and {b}|pick the {more} one: {a} or {b}|"
    "say which of {a} and {b} is {more}|decide which is {more}, {a} or {b}|compare {a} and {b} and name the {more} one",
    "reverse": "reverse {w}|reverse the word {w}|spell {w} backwards|spell the word {w} backwards|write {w} backwards|"
    "write {w} in reverse|write {w} the other way round|write {w} from back to front|flip {w}|flip the word {w}|"
    "turn {w} around|turn the word {w} around|reverse the letters of {w}|reverse the letters in {w}|say {w} backwards|"
    "print {w} in reverse|read {w} backwards|type {w} backwards|spell {w} in reverse|reverse the text {w}|"
    "invert the letters of {w}|mirror {w}|put the letters of {w} in the opposite order|start at the end of {w} and spell it|write the letters of {w} in reverse order|turn {w} into its reverse",
    "count": "count the letter {l} in {w}|count the {l}'s in {w}|count the {l}s in {w}|count {l} in {w}|"
    "count how many times {l} appears in {w}|count how often {l} occurs in {w}|count every {l} in {w}|"
    "count all {l}'s in {w}|find how many {l}'s are in {w}|check how many times {l} is in {w}|"
    "count the occurrences of {l} in {w}|count the letter {l} in the word {w}|look for {l} in {w} and count",
    "other": "tell me a joke|write a poem about {t}|explain {t}|translate {w} into Spanish|draw a {w}|sing a song|"
    "describe {c}|write a letter to {p}|plan a trip to {c}|divide {n} by {n}|make a list of {w}s|define {w}|"
    "book a flight to {c}|call {p}|write a story|summarize {t}|find a restaurant in {c}|cook a meal|fix my code|"
    "spell check {w}|convert {n} miles to kilometres|recommend a book about {t}|read me the news|help {p}|dance",
}

TO_NAME = {
    "add": "{a} plus {b}|{a} + {b}|{a}+{b}|the sum of {a} and {b}|the total of {a} and {b}|the result of {a} + {b}|"
    "the answer to {a} + {b}|the value of {a} + {b}|{a} and {b} added together|the sum {a} + {b}|{a} added to {b}|"
    "the result of adding {a} and {b}|the result of {a} plus {b}|the sum of the numbers {a} and {b}",
    "sub": "{a} minus {b}|{a} - {b}|{a}-{b}|the difference {a} - {b}|the result of {a} minus {b}|the answer to {a} - {b}|"
    "the value of {a} - {b}|{a} less {b}|{b} subtracted from {a}|{a} take away {b}|{b} taken from {a}|"
    "the result of subtracting {b} from {a}|the result of {a} - {b}",
    "mul": "{a} times {b}|{a} {x} {b}|{a}{x}{b}|the product of {a} and {b}|the result of {a} {x} {b}|"
    "the answer to {a} {x} {b}|the value of {a} {x} {b}|{a} multiplied by {b}|the product {a} {x} {b}|"
    "the result of multiplying {a} by {b}|the result of {a} times {b}",
    "compare": "the {more} of {a} and {b}|the {more} number of {a} and {b}|the {more} one of {a} and {b}|"
    "the {more} number, {a} or {b}|the {more} of the two numbers {a} and {b}|the {more} value of {a} and {b}",
    "reverse": "{w} backwards|{w} reversed|{w} in reverse|the word {w} backwards|the reverse of {w}|"
    "the letters of {w} in reverse order|{w} spelled backwards|the reverse of the word {w}|{w} written backwards|"
    "the word {w} spelled in reverse|{w} from back to front|{w} with its letters reversed|the backwards spelling of {w}",
    "count": "the number of {l}'s in {w}|the number of {l} in {w}|the count of {l} in {w}|"
    "the number of times {l} appears in {w}|the number of occurrences of {l} in {w}|the number of letters {l} in {w}|"
    "the frequency of {l} in {w}|the {l} count of {w}|how many {l}'s the word {w} has|the quantity of {l}'s in {w}",
    "other": "the capital of {c}|the weather in {c}|the meaning of {w}|the square root of {n}|the time|your name|"
    "a joke|the population of {c}|the history of {t}|a synonym for {w}|the colour of the sky|the best {w}|"
    "the distance from {c} to {c}|a recipe|the president of {c}|the age of {p}|{n} divided by {n}|a story about {t}|"
    "the opposite of {w}|the plural of {w}|the price of a {w}|the phone number of {p}|{n} percent of {n}",
}

TO_TELL = {
    "compare": "which is {more}, {a} or {b}|which of {a} and {b} is {more}|which number is {more}, {a} or {b}|"
    "which one is {more}: {a} or {b}|which of the numbers {a} and {b} is {more}|what is {more}, {a} or {b}",
    "count": "how many {l}'s are in {w}|how many times {l} appears in {w}|how many times {l} occurs in {w}|"
    "how often {l} appears in {w}|how often the letter {l} comes up in {w}|how many times the letter {l} is in {w}|"
    "how many {l}s there are in {w}|how often {w} has the letter {l}|how frequently {l} appears in {w}|"
    "{w} has how many {l}'s|the word {w} contains how many {l}'s|in {w} there are how many {l}'s|"
    "how many times you see {l} in {w}|how many times the word {w} uses the letter {l}|how many of the letter {l} {w} has|"
    "in {w}, the letter {l} is there how many times|for the word {w}, how many {l}'s there are|how many {l}'s {w} has|how many letters in {w} are {l}|how many {l}'s {w} contains",
    "reverse": "what {w} is backwards|how {w} reads from right to left|how {w} looks when it is reversed|how {w} is spelled backwards|what {w} looks like reversed|how to spell {w} backwards",
    "add": "how much {a} plus {b} is|what {a} + {b} is|how much is {a} and {b} together|what {a} and {b} add up to|"
    "what the sum of {a} and {b} is|what you get from {a} plus {b}|how many {a} and {b} make|what {a} and {b} come to",
    "sub": "how much {a} minus {b} is|what {a} - {b} is|what is left of {a} without {b}|how much is left if I take {b} from {a}",
    "mul": "how much {a} times {b} is|what {a} {x} {b} is|what the product of {a} and {b} is",
    "other": "who {p} is|where {c} is|how {t} works|why {t} is important|when {p} was born|how old {p} is|"
    "what {w} means|how far {c} is|what time it is|what day it is|how to make a {w}|who won",
}


def framed(rng: Random, task: str, *, down: bool = False) -> str:
    """Put a phrasing together; its marks ({a}, {w} …) are still to be filled in."""
    kind = rng.random()
    if task == "sort":
        return _sorting(rng, down=down)
    if kind < 0.5:
        part, frames = rng.choice(_TO_DO[task]), DO
    elif kind < 0.8 or task not in _TO_TELL:
        part, frames = rng.choice(_TO_NAME[task]), NAME
    else:
        part, frames = rng.choice(_TO_TELL[task]), TELL
    return _fit(rng.choice(frames), part)


def _sorting(rng: Random, *, down: bool) -> str:
    kind = rng.random()
    ways, firsts = (_DOWN, _FIRST_DOWN) if down else (_UP, _FIRST_UP)
    things, way, first = rng.choice(_LISTS), rng.choice(ways), rng.choice(firsts)
    verb = rng.choice(_SORTING)
    if kind < 0.3:
        return _fit(rng.choice(DO), f"{verb} {things} {way}")
    if kind < 0.45:
        return _fit(rng.choice(DO), f"{rng.choice(_PLACING)} {things} {way}")
    if kind < 0.6:
        return _fit(
            rng.choice(["{i}", "{I}", "Please {i}", "please {i}"]),
            f"{rng.choice([verb, rng.choice(_PLACING)])}{rng.choice(['', ' these numbers', ' this list', ' them', ' the values'])} {way}: {{xs}}",
        )
    if kind < 0.75:
        mark = rng.choice([f", {first}:", f" {first}:", f" ({first}):", f", {first} :"])
        return _fit(rng.choice(["{i}", "{I}", "Please {i}"]), f"{verb}{mark} {{xs}}")
    if kind < 0.85:
        return _fit(
            rng.choice(["{i}", "{I}", "{I}."]),
            f"{verb} {things}{rng.choice([', ', ' - ', ' '])}{first}",
        )
    if not down and kind < 0.92:
        return _fit(rng.choice(DO), f"{verb} {things}")
    if rng.random() < 0.4:
        return rng.choice(_ASKING).replace("{way}", way).replace("{first}", first)
    names = f"{{xs}} {way}|the numbers {{xs}} {way}|{{xs}} sorted {way}|the list {{xs}} sorted {way}".split(
        "|"
    )
    if not down:
        names += "the sorted list of {xs}|the numbers {xs} in sorted order|{xs} sorted|the sorted version of {xs}".split(
            "|"
        )
    return _fit(rng.choice(NAME), rng.choice(names))


def _fit(frame: str, part: str) -> str:
    """Put a part into a frame; neither's other marks are touched."""
    capital = part[:1].upper() + part[1:]
    for mark, text in (("{i}", part), ("{n}", part), ("{I}", capital), ("{N}", capital)):
        if mark in frame:
            # once, and from the left: the part may have a {n} of its own
            return frame.replace(mark, text, 1)
    return frame


_TO_DO = {task: parts.split("|") for task, parts in TO_DO.items()}
_TO_NAME = {task: parts.split("|") for task, parts in TO_NAME.items()}
_TO_TELL = {task: parts.split("|") for task, parts in TO_TELL.items()}
