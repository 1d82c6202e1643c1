"""Phrasings composed of a request and a frame that fits any request.

``phrasings.py`` lists complete sentences, which cannot cover everything that users write. Here,
each task has commands ("add {a} and {b}"), noun phrases ("the sum of {a} and {b}") and indirect
questions ("how many {l}'s are in {w}"); each fits any frame of its kind. Requests outside the tasks
have the same frames, so a frame alone does not indicate a task.
"""

from random import Random

import openings
import parts

# frames for commands; {i}: unchanged, {I}: capitalized
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
    "Here's a task: {i}|It's your turn: {i}|I've to {i}|Don't forget to {i}|Who's able to {i}?|You're asked to {i}.|"
    "I'd love you to {i}|Let's see you {i}|Be so kind and {i}|It would be nice if you could {i}|Do this: {i}|In this exercise you {i}"
).split("|")

# frames for noun phrases
NAME = (
    "What is {n}?|What's {n}?|what is {n}|Tell me {n}|Tell me {n}.|Give me {n}|Give me {n}, please|Find {n}|"
    "Find {n}.|Say {n}|I need {n}|I want {n}.|I'm looking for {n}|I am looking for {n}.|Do you know {n}?|"
    "Can you give me {n}?|Could you give me {n}?|Could you tell me {n}?|Please tell me {n}|Please give me {n}.|"
    "Compute {n}|Calculate {n}|Determine {n}|Determine {n}.|Figure out {n}|Work out {n}.|What would be {n}?|"
    "What might {n} be?|{N}?|{N}|{N}, please|{N}, please.|Return {n}|Output {n}|Write {n}|Write down {n}|"
    "How about {n}?|I would like to know {n}|I want to know {n}.|Let me know {n}|The answer to this: {n}|"
    "My question is: {n}|I need to know {n}|Can you find {n}?|Can you work out {n}?|Print {n}|Report {n}|"
    "I'd like {n}|I'd like {n}.|I'd love {n}|I'd like to see {n}|I'm asking for {n}|I'm after {n}|Here's what I want: {n}|"
    "Show me {n}|Show {n}|Could you show me {n}?|Can you show me {n}?|Please show me {n}|Let's see {n}|It's {n} that I need|"
    "Let me see {n}|Provide {n}|Please provide {n}.|Please find {n}|State {n}|I ask for {n}"
).split("|")

# frames for indirect questions, which begin with a question word
TELL = (
    "Tell me {n}|Tell me {n}.|Please tell me {n}|Do you know {n}?|I want to know {n}|I'd like to know {n}.|"
    "I'm wondering {n}|I'd love to know {n}|I can't see {n}|Could you show me {n}?|Don't know {n}|"
    "I wonder {n}|Let me know {n}|Find out {n}|Figure out {n}.|Could you say {n}?|Could you tell me {n}?|"
    "{N}?|{N}|{n}|Say {n}|My question is {n}|Work out {n}|Please work out {n}.|Can you see {n}?|"
    "Determine {n}|I need to know {n}|Are you able to tell me {n}?|Can you say {n}?|Question: {N}?|Check {n}"
).split("|")

_DIRECT_SHARE, _LOOSE_SHARE, _TWOFOLD_SHARE = 0.3, 0.25, 0.22

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
    "in descending order|in a descending order|in decreasing order|from largest to smallest|from high to low|from greatest to least|"
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
    "I'd like {xs} ordered {way}|I want {xs} ordered {way}|I need {xs} arranged {way}|Please put down {xs} sorted {way}|"
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
    """Return a composed phrasing with its placeholders ({a}, {w}, …)."""
    if rng.random() < _TWOFOLD_SHARE:
        way = rng.choice(_DOWN if down else _UP)
        return parts.twofold(rng, task, way, rng.choice(_FIRST_DOWN if down else _FIRST_UP))
    if rng.random() < _DIRECT_SHARE:
        sentence = rng.choice(_DIRECT[task])
        if task == "sort":
            sentence = sentence.replace("{way}", rng.choice(_DOWN if down else _UP))
            sentence = sentence.replace("{first}", rng.choice(_FIRST_DOWN if down else _FIRST_UP))
        return sentence
    if task == "sort":
        return _sorting(rng, down=down)
    kind = rng.random()
    if rng.random() < _LOOSE_SHARE:
        fitting = (
            _TO_DO[task] if kind < 0.5 else _TO_NAME[task] if kind < 0.8 else _TO_TELL.get(task)
        )
        return openings.loose(rng, rng.choice(fitting or _TO_NAME[task]))
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
    if rng.random() < _LOOSE_SHARE:
        forms = (
            f"{verb} {things} {way}|{rng.choice(_PLACING)} {things} {way}|{things} {way}|"
            f"{things} sorted {way}|{verb} {way}: {{xs}}|{verb} {things}, {first}|{verb} {first}: {{xs}}"
        )
        return openings.loose(rng, rng.choice(forms.split("|")))
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
    """Insert a part into a frame; other placeholders are unchanged."""
    capital = part[:1].upper() + part[1:]
    for mark, text in (("{i}", part), ("{n}", part), ("{I}", capital), ("{N}", capital)):
        if mark in frame:
            # once, from the left: the part may contain {n} itself
            return frame.replace(mark, text, 1)
    return frame


DIRECT = {
    "add": "{a} plus {b}, how much does that make?|If I put {b} on top of {a}, what have I got?|When {b} is added to {a}, what is it?|Sum: {a} and {b}?|My calculator broke, what is {a} + {b}?|"
    "If you add {a} and {b}, what is the result?|Give the answer to {a} plus {b}|What would {a} plus {b} come out as?|{a} added to {b} gives what?|"
    "What number is {a} + {b}?|{a} and {b}, added up|{a} and {b} make what?|What number do {a} and {b} make?|"
    "What will I get if I add {a} to {b}?|What do {a} and {b} give together?|{a} and {b} together are how much?|"
    "By adding {b} to {a} you get what?|{a} plus {b} makes?|How many are {a} and {b}?",
    "sub": "I have {a} and take off {b}. What is left?|{a} minus {b}, how much does that make?|Please tell me what {a} minus {b} comes to|When {b} is subtracted from {a}, what is it?|Difference: {a} minus {b}?|My calculator broke, what is {a} - {b}?|"
    "If you subtract {b} from {a}, what is the result?|Give the answer to {a} minus {b}|What would {a} minus {b} come out as?|{b} subtracted from {a} gives what?|"
    "What number is {a} - {b}?|{a}, less {b}|From {a} subtract {b}|What will I get if I subtract {b} from {a}?|"
    "What remains of {a} after taking away {b}?|{a} without {b} leaves what?|What is {b} less than {a}?|"
    "By taking {b} from {a} you get what?|{a} minus {b} makes?|How much more is {a} than {b}?",
    "mul": "What is their product, {a} and {b}?|{a} times {b}, how much does that make?|Please tell me what {a} times {b} comes to|When {a} is multiplied by {b}, what is it?|Product: {a} times {b}?|My calculator broke, what is {a} {x} {b}?|"
    "If you multiply {a} by {b}, what is the result?|Give the answer to {a} times {b}|What would {a} times {b} come out as?|{a} multiplied by {b} gives what?|"
    "What number is {a} {x} {b}?|{a}, {b} times|Take {a} times {b}|What will I get if I multiply {a} by {b}?|"
    "{a} times {b} makes?|By multiplying {a} and {b} you get what?|What do {a} and {b} multiply to?|"
    "What is {a} taken {b} times?|How many are {a} times {b}?",
    "compare": "Please tell me whether {a} or {b} is {more}|The {more} number: {a} or {b}?|My friend says {a}, I say {b}. Which number is {more}?|When you look at {a} and {b}, which is the {more} one?|"
    "Out of {a} and {b}, which is {more}?|Choose the {more} value: {a} or {b}|Would you say {a} or {b} is {more}?|"
    "Which has the {more} value, {a} or {b}?|Would {a} or {b} be the {more} one?|Which value is {more}, {a} or {b}?|"
    "{a} and {b}: which is {more}?|If you have {a} and {b}, which one is {more}?|Which would be {more}, {a} or {b}?|"
    "Does {a} or {b} have the {more} value?|Of the two, {a} and {b}, the {more} is?|{a}, {b}: {more}?",
    "sort": "My friend wants {xs} {way}|The order of {xs}, {first}?|{xs} {way}?|Could I get {xs} {way}?|When I sort {xs}, {first}, what do I get?|"
    "Could you tell me the sorted order of {xs}, {first}?|Please jot down {xs} sorted {way}|Numbers to sort {way}: {xs}|Have {xs} ordered {way}|Could you tell me {xs} ordered {way}?|"
    "What order do {xs} go in, {way}?|What order should {xs} be in, {first}?|In what order do {xs} come, {first}?|"
    "How do {xs} go {way}?|What order are {xs} in when sorted {way}?|In which order do {xs} belong, {way}?|"
    "Which order do {xs} have {way}?|Display {xs} {way}|Show {xs} {way}|Show me {xs} {way}|Give me {xs} {way}|"
    "Give these {way}: {xs}|Show these {way}: {xs}|Display the list {xs} {way}|Which comes first? {xs}, {way}|"
    "What are {xs} {way}?|How would {xs} look {way}?|When sorted {way}, what are {xs}?|{way}: {xs}|"
    "What will {xs} be when you sort them {way}?|To sort {xs} {way}, what do I write?",
    "reverse": "My friend wrote {w} backwards. What did it say?|Could I get {w} reversed?|Backwards spelling of {w}?|Read the word {w} from its end to its start|"
    "If you reverse {w}, what do you get?|Let me have {w} spelled backwards|Give the reverse of {w}|Spell out the letters of {w} in reverse|"
    "What would {w} be backwards?|What would {w} be if it were reversed?|What would {w} be in reverse?|"
    "What would {w} look like backwards?|What does {w} become when it is reversed?|What is {w} when read backwards?|"
    "How would {w} be written backwards?|How would you write {w} backwards?|What would the reverse of {w} be?|"
    "Show the word {w} backwards|Would you reverse {w} for me?|Can you write the word {w} backwards?|"
    "What will {w} be with its letters turned around?|{w}, but backwards|Backwards, {w} is what?|In reverse, what is {w}?|"
    "Of {w}, what is the reverse?|When you reverse {w}, what comes out?|What word is {w} backwards?",
    "count": "My friend asked how many times {l} is in {w}|Could I get the number of {l}'s in {w}?|How many times do I write {l} when I write {w}?|Letter count of {l} in {w}?|{l} count in {w}?|Number of letters {l} in {w}|How many times do you type {l} for {w}?|"
    "In {w}, how often do you see the letter {l}?|I'm curious how many {l}'s {w} has|If you count the {l}'s in {w}, what do you get?|Could you give me the count of the letter {l} in {w}?|"
    "The letter {l} occurs how many times in {w}?|The letter {l} appears how many times in {w}?|"
    "The letter {l} is found how many times in {w}?|Letter {l} shows up how often in {w}?|{l} occurs how often in {w}?|"
    "The letter {l} can be found in {w} how many times?|{l} is in {w} how many times?|For the letter {l}, how often is it in {w}?|"
    "How often is the letter {l} in {w}?|How often can you find {l} in {w}?|Of the letters in {w}, how many are {l}?|"
    "Looking for {l} in {w}: how many?|{l} in {w}: how many?|{w}: how many {l}'s?|{w} - count the {l}'s|With {w}, how many {l}'s are there?|"
    "When you count {l} in {w}, how many are there?|What number of {l}'s does {w} have?|How many times will I find {l} in {w}?|"
    "Do you see the letter {l} in {w}? How many times?|Counting {l} in {w} gives?|Would you say how many {l}'s {w} has?",
    "other": "How old is the universe?|My friend is sad, what should I do?|Could I get a refund?|Here is a haiku, please rate it|Which language is the hardest?|When did the war end?|"
    "Which river is the longest?|Tell me something about trains|How do birds fly?|Who invented the radio?|What's new?|"
    "Which city is the biggest in {c}?|How do {w}s work?|Who is the {w}?|What's up?|Which {w} is the best?|"
    "Is {p} here?|When does {t} begin?|What would {p} say?|Where did {p} go?|How many people live in {c}?|"
    "What order did {p} give?|Would {p} like {c}?|Which {w} do you like?|The {w} costs how much?|Does {p} know {c}?",
}
"""Complete sentences that fit no frame."""

_DIRECT = {task: sentences.split("|") for task, sentences in DIRECT.items()}
_TO_DO = {task: parts.split("|") for task, parts in TO_DO.items()}
_TO_NAME = {task: parts.split("|") for task, parts in TO_NAME.items()}
_TO_TELL = {task: parts.split("|") for task, parts in TO_TELL.items()}
