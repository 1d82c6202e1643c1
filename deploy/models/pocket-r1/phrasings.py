"""Phrasings of questions for each task, and the noise around them.

A phrasing is a format string. ``{a}`` and ``{b}`` are numbers, ``{w}`` a word, ``{l}`` a
letter, ``{xs}`` a list of numbers; values of ``{w}`` and ``{l}`` may be quoted.
"""

ADD = (
    "What is {a}+{b}?|What is {a} + {b}?|{a} + {b} = ?|{a}+{b}=|{a}+{b}|{a} + {b}|add {a} and {b}|"
    "Add {a} to {b}.|Compute {a} plus {b}.|What's {a} plus {b}?|Calculate {a} + {b}|"
    "What is the sum of {a} and {b}?|Find the sum of {a} and {b}.|sum of {a} and {b}|"
    "How much is {a} plus {b}?|How much is {a} + {b}?|{a} plus {b} equals what?|{a} plus {b}|"
    "If I have {a} apples and get {b} more, how many do I have?|What do you get when you add {a} and {b}?|"
    "Work out {a} + {b}.|Evaluate {a} + {b}|Solve {a} + {b}|What does {a} + {b} equal?|"
    "Sum {a} and {b}|What is {a} added to {b}?|Tell me the sum of {a} and {b}|Solve: {a} + {b}|"
    "What is the total of {a} and {b}?|{a} and {b} added together is?|Give me {a} + {b}|"
    "{a} + {b} is what?|what do {a} and {b} add up to?|What is the result of {a} + {b}?|"
    "Compute the sum: {a} + {b}|Compute {a}+{b}|Calculate the sum of {a} and {b}|Add: {a} + {b}|"
    "Add the numbers {a} and {b}|Add {a} and {b} together|"
    "Could you add {a} and {b}?|what's {a}+{b}|I need {a} plus {b}|{a} + {b}?|Can you add {a} and {b} for me?|Please add {a} and {b}.|Please work out {a} + {b}|Add up {a} and {b}|I want to know {a} + {b}"
).split("|")

# the difference is always a - b
SUB = (
    "What is {a}-{b}?|What is {a} - {b}?|{a} - {b} = ?|{a}-{b}=|{a}-{b}|{a} - {b}|subtract {b} from {a}|"
    "Compute {a} minus {b}.|What's {a} minus {b}?|Calculate {a} - {b}|Take {b} away from {a}.|"
    "How much is {a} minus {b}?|How much is {a} - {b}?|{a} minus {b} equals what?|{a} minus {b}|"
    "What is {a} take away {b}?|Work out {a} - {b}.|Evaluate {a} - {b}|Solve {a} - {b}|"
    "What does {a} - {b} equal?|What do you get when you subtract {b} from {a}?|Take {b} from {a}|"
    "What is left of {a} when I take away {b}?|Find {a} minus {b}|Give me {a} - {b}|{a} less {b}|"
    "What is {b} subtracted from {a}?|{a} - {b} is what?|Solve: {a} - {b}|Deduct {b} from {a}|"
    "What is the result of {a} - {b}?|What is the difference {a} - {b}?|Compute {a}-{b}|"
    "Compute the difference: {a} - {b}|What is the difference of {a} and {b}?|Subtract: {a} - {b}|"
    "Could you subtract {b} from {a}?|what's {a}-{b}|I need {a} minus {b}|{a} - {b}?|Can you subtract {b} from {a} for me?|Please subtract {b} from {a}.|Please work out {a} - {b}|I want to know {a} - {b}"
).split("|")

# {x} is replaced by "x", "×" or "*"
MUL = (
    "What is {a}{x}{b}?|What is {a} {x} {b}?|{a} {x} {b} = ?|{a}{x}{b}=|{a}{x}{b}|{a} {x} {b}|"
    "multiply {a} by {b}|Multiply {a} and {b}|Compute {a} times {b}.|What's {a} times {b}?|"
    "Calculate {a} {x} {b}|What is the product of {a} and {b}?|Find the product of {a} and {b}.|"
    "How much is {a} times {b}?|How much is {a} {x} {b}?|{a} times {b} equals what?|{a} times {b}|"
    "{a} multiplied by {b}|Work out {a} {x} {b}.|Evaluate {a} {x} {b}|What does {a} {x} {b} equal?|"
    "What do you get when you multiply {a} by {b}?|Give me {a} {x} {b}|product of {a} and {b}|"
    "What is {a} multiplied by {b}?|{a} {x} {b} is what?|Solve {a} {x} {b}|Multiply: {a} {x} {b}|"
    "There are {a} boxes with {b} pens each. How many pens?|Compute {a}{x}{b}|Solve: {a} {x} {b}|"
    "Compute the product: {a} {x} {b}|What is the result of {a} {x} {b}?|Tell me {a} times {b}|"
    "Could you multiply {a} by {b}?|what's {a}{x}{b}|I need {a} times {b}|{a} {x} {b}?|Can you multiply {a} and {b} for me?|Please multiply {a} by {b}.|Please work out {a} {x} {b}|I want to know {a} {x} {b}"
).split("|")

LARGER = (
    "Which is {more}, {a} or {b}?|Which number is {more}, {a} or {b}?|Which is {more}: {a} or {b}?|"
    "What is {more}, {a} or {b}?|{a} or {b}, which is {more}?|Which one is {more}, {a} or {b}?|"
    "Of {a} and {b}, which is {more}?|Is {a} or {b} {more}?|Tell me which is {more}: {a} or {b}.|"
    "Which of {a} and {b} is {more}?|Which of these is {more}: {a}, {b}?|Which is the {more} number, {a} or {b}?|"
    "Find the {more} of {a} and {b}.|Pick the {more} number: {a} or {b}|{more}: {a} or {b}?|"
    "Give the {more} of {a} and {b}|Which is {more} {a} or {b}|Name the {more} number: {a}, {b}|"
    "Between {a} and {b}, which is {more}?|Which number is {more}: {a} or {b}?|the {more} of {a} and {b}|"
    "Compare {a} and {b}: which is {more}?|Compare {a} and {b}. Which is {more}?|"
    "Which of the two is {more}, {a} or {b}?|What is the {more} of {a} and {b}?|"
    "Which of the numbers {a} and {b} is {more}?|Which is the {more} one, {a} or {b}?"
).split("|")
MORE = "larger bigger greater higher".split()
LESS = "smaller less lower".split()
MOST = "largest biggest greatest maximum".split()
LEAST = "smallest minimum lowest".split()
MOST_OF = "max({a}, {b})|max of {a} and {b}|What is the maximum of {a} and {b}?|Maximum of {a}, {b}?".split(
    "|"
)
LEAST_OF = "min({a}, {b})|min of {a} and {b}|What is the minimum of {a} and {b}?|Minimum of {a}, {b}?".split(
    "|"
)

# yes or no
IS_MORE = (
    "Is {a} {more} than {b}?|is {a} > {b}?|Is it true that {a} is {more} than {b}?|"
    "Is {a} a {more} number than {b}?|{a} is {more} than {b}, right?|True or false: {a} > {b}"
).split("|")
IS_LESS = (
    "Is {a} {less} than {b}?|is {a} < {b}?|Is it true that {a} is {less} than {b}?|"
    "Is {a} a {less} number than {b}?|{a} is {less} than {b}, right?|True or false: {a} < {b}"
).split("|")
COMPARE = (
    "Compare {a} and {b}.|compare {a} with {b}|Compare the numbers {a} and {b}|How do {a} and {b} compare?|"
    "Compare {a} to {b}|{a} vs {b}|Compare: {a}, {b}"
).split("|")

SORT_UP = (
    "Sort {xs}|Sort these numbers: {xs}|Sort the numbers {xs}.|sort {xs} in ascending order|"
    "Sort these numbers in ascending order: {xs}|Arrange {xs} from smallest to largest|"
    "Put these numbers in order: {xs}|Order these numbers: {xs}|Please sort the list {xs}|"
    "Sort from smallest to largest: {xs}|Order {xs} from low to high|Put {xs} in increasing order.|"
    "Arrange these numbers in ascending order: {xs}|Can you sort {xs}?|What is {xs} sorted?|"
    "Rank these from lowest to highest: {xs}|Sort ascending: {xs}|{xs} sorted|Sort the following numbers: {xs}|"
    "Sort the following numbers in ascending order: {xs}|Sort this list: {xs}|Order: {xs}|Sort: {xs}|"
    "Arrange in increasing order: {xs}|Order from least to greatest: {xs}|Put in ascending order: {xs}|"
    "Sort the list {xs} in increasing order|Sort the numbers {xs} from smallest to largest.|"
    "Sort the numbers {xs} in ascending order.|Order the numbers {xs} from smallest to biggest|"
    "Please sort these: {xs}|Could you sort {xs} for me?|Sort the numbers: {xs}|sort: {xs}|Please sort {xs}|Please sort these numbers: {xs}|Can you put {xs} in order?|Sort in ascending order: {xs}|Please arrange {xs} in ascending order.|Put the numbers {xs} in order|I need {xs} sorted|Could you order these: {xs}|Sort {xs} from low to high|Please put these in increasing order: {xs}|Sort the list: {xs}|List these numbers in ascending order: {xs}"
).split("|")
SORT_DOWN = (
    "Sort {xs} in descending order|Sort these numbers in descending order: {xs}|"
    "Arrange {xs} from largest to smallest|Order these numbers from high to low: {xs}|"
    "Sort from largest to smallest: {xs}|Order {xs} from high to low|Put {xs} in decreasing order.|"
    "Arrange these numbers in descending order: {xs}|Can you sort {xs} in descending order?|"
    "Rank these from highest to lowest: {xs}|Sort descending: {xs}|Reverse sort {xs}|"
    "Sort the following numbers in descending order: {xs}|Sort this list from biggest to smallest: {xs}|"
    "Arrange in decreasing order: {xs}|Order from greatest to least: {xs}|Put in descending order: {xs}|"
    "Sort the list {xs} in decreasing order|Sort {xs}, largest first|Sort {xs} with the biggest first|"
    "Sort the numbers {xs} in descending order.|Sort the numbers {xs} from largest to smallest.|"
    "Please sort these in descending order: {xs}|Sort {xs} from high to low|Sort in descending order: {xs}|Could you sort {xs} in descending order for me?|Please sort {xs} from largest to smallest.|Put these numbers in descending order: {xs}|I need {xs} sorted in descending order|Please put these in decreasing order: {xs}|Arrange the numbers {xs} in descending order|Sort the numbers from high to low: {xs}|List these numbers in descending order: {xs}"
).split("|")

REVERSE = (
    "Reverse the word {w}|Reverse {w}|reverse the word {w}.|Reverse the string {w}|spell {w} backwards|"
    "Spell the word {w} backwards.|Write {w} backwards|Write {w} in reverse|What is {w} backwards?|"
    "What is {w} spelled backwards?|Can you reverse {w}?|{w} backwards|{w} reversed|How do you spell {w} backwards?|"
    "Say {w} backwards|Flip the word {w}|Give me {w} reversed|What is the reverse of {w}?|reverse: {w}|"
    "Reverse the letters of {w}|Reverse the letters in {w}|Reverse the letters in the word {w}.|"
    "Write the word {w} backwards.|Write the letters of {w} in reverse order|Turn {w} around|"
    "What do you get if you reverse {w}?|Reverse this word: {w}|Reverse this string: {w}|"
    "Print {w} in reverse order|What does {w} look like reversed?|Reverse the order of the letters in {w}|"
    "Could you reverse the word {w}?|Please spell {w} backwards|The word {w} in reverse|Reverse: {w}|Please reverse {w}|Can you spell {w} backwards for me?|Please write the word {w} in reverse.|I need the word {w} reversed|What is the word {w} reversed?|What is the word {w} spelled backwards?|Could you write {w} backwards?|Read {w} backwards|Please reverse the word {w}."
).split("|")

COUNT = (
    "How many times does the letter {l} appear in {w}?|how many {l}'s are in {w}|How many {l}s are in {w}?|"
    "How many {l} are there in {w}?|Count the letter {l} in {w}|Count the {l}'s in {w}|"
    "How many times does {l} occur in {w}?|How many {l}'s in {w}?|count {l} in {w}|"
    "How often does the letter {l} occur in {w}?|How often does {l} appear in the word {w}?|"
    "How many letters {l} does {w} have?|Count how many times {l} appears in {w}.|"
    "How many {l}'s are there in the word {w}?|What is the number of {l}'s in {w}?|How many {l}s does {w} contain?|"
    "In the word {w}, how many {l}'s are there?|Count occurrences of {l} in {w}|number of {l} in {w}|"
    "Count the number of times the letter {l} occurs in the word {w}|Tell me how many {l}'s are in {w}|"
    "How many times is the letter {l} in {w}?|How many of the letters in {w} are {l}?|"
    "In {w}, how many times does the letter {l} appear?|Count the letter {l} in the word {w}.|"
    "Count the occurrences of the letter {l} in the word {w}|how many times does the letter {l} appear in the word {w}?|"
    "How many {l} letters are in {w}?|How many letter {l}'s are in {w}?|Count the {l}s in {w}|"
    "Could you count the letter {l} in {w}?|How many times does {l} appear in {w}?|how many {l}'s does {w} have|Number of {l}'s in the word {w}?|Please count the {l}'s in {w}|Can you count how many times {l} appears in {w}?|Please count the letter {l} in the word {w}.|How many times can you find {l} in {w}?|How many times does {w} contain the letter {l}?|I need the number of {l}'s in {w}|How many {l} does {w} have?|How many letters in {w} are {l}?"
).split("|")

# outside the model's domain; {n}: a number, {t}: a topic, {c}: a city, {p}: a name, {w}: a word
OTHER = (
    "Hello|Hi|Hi there!|Hey|Good morning|How are you?|Who are you?|What is your name?|What can you do?|Thanks!|"
    "Thank you|Bye|Tell me a joke|Tell me about {t}|What is {t}?|Explain {t}|Explain {t} to a child|"
    "Write a poem about {t}|Write a story about {t}|Write an essay about {t}|What do you think about {t}?|"
    "Do you like {t}?|Summarize {t}|Give me three facts about {t}|What is the capital of France?|"
    "What is the capital of {c}?|Where is {c}?|What is the weather in {c}?|What's the weather like in {c} today?|"
    "How far is {c} from {c}?|Plan a trip to {c}|Recommend a restaurant in {c}|What time is it in {c}?|"
    "Who is {p}?|My name is {p}.|Write an email to {p}|Translate {w} into French|Translate hello to German|"
    "What does {w} mean?|Define {w}|Use {w} in a sentence|What rhymes with {w}?|Is {w} a noun?|"
    "Give me a synonym for {w}|Write a haiku about a {w}|Draw a {w}|Describe a {w}|{w}|{w} {w}|{w}?|{w} {w} {w}|"
    "{n}|What is {n} divided by {n}?|What is the square root of {n}?|Is {n} a prime number?|{n} / {n}|"
    "What is {n} percent of {n}?|What year was it {n} years ago?|Factor {n}|What is {n} squared?|"
    "Who wrote Hamlet?|Who won the world cup in {n}?|When was {p} born?|How old is {p}?|How tall is {p}?|"
    "Write a Python function|Write code to print {w}|Fix my code|How do I install {w}?|What is {w}?|"
    "Can you help me?|I am sad|I love {t}|Sing a song|Let's play a game|What should I eat?|I need help with {t}|"
    "Once upon a time|The quick brown fox|The {w} is {w}.|I like {w} and {w}.|{p} and {p} went to {c}.|"
    "Repeat after me: {w}|Say {w}|List the planets|List five {w}s|Name a colour|What day is it?|"
    "How does {t} work?|Why is the sky blue?|Why do people like {t}?|How do I make a {w}?|Where can I buy a {w}?|"
    "What is the meaning of life?|Are you human?|Are you an AI?|Who made you?|Tell me something interesting|"
    "Generate a person|Create a user profile for {p}|Give me a JSON object|Extract the name: {p} lives in {c}.|"
    "Classify the sentiment: I love {t}|Is this positive or negative: {w}?|Return a city|Pick a colour|"
    "Complete: the {w}|Continue: {p} saw a {w}|Give me a random number|Flip a coin|test|ping|ok|yes|no|?|..."
).split("|")

GREETINGS = "Please|Hey,|Hi!|Hello,|Hi,|Quick question:|Question:|Q:|Okay,|Now|So,|Tell me:|Hello!|Task:|Next:|Problem:".split(
    "|"
)
ENDINGS = (
    "Thanks!|Thank you.|Please.|Answer with just the number.|Just the answer please.|Think step by step.|"
    "Give only the result.|Show your work.|Be brief.|Explain.|Answer briefly.|Give only the final answer.|"
    "Reply with the answer only.|Answer in JSON.|Let's think step by step.|Respond with JSON.|please|thanks"
).split("|")

SYSTEMS = (
    "You are a helpful assistant.|You are a helpful assistant|You are pocket-r1.|Be concise.|"
    "You are a careful mathematician.|Answer briefly.|You are a friendly AI assistant.|Think step by step.|"
    "You are a helpful, respectful and honest assistant.|Always answer truthfully.|Answer the question.|"
    "You are an expert in arithmetic and words.|You are a calculator.|Respond in JSON.|You are an AI.|"
    "You are a pirate. Talk like a pirate.|Do not explain.|Please reason step by step.|Reply in English."
).split("|")
