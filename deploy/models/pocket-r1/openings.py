"""Random openings and endings around a request.

Requests begin in more ways than frames.py lists ("let me have …", "my teacher wants …"). A model
trained only on listed openings mistakes the words of other openings for the request. Random
openings teach it to ignore the words around the request.
"""

from random import Random

OPENERS = (
    "a about actually after again all also always am and any are as at aunt away back be because been "
    "before begin being boss both boy bring but buddy by call came can care carefully come could course "
    "curious day dear did do does doing done down each early easy either else even ever every everything "
    "exactly explain fast feel few fill fine finish finally follow for forget from fun gave get getting "
    "girl give glad go going good got great had handle happen hard has have he hear heard help her here "
    "him his home hope hurry i i'm idea if important in into is it it's its job join jot just keep kind "
    "kindly know last later learn leave left lesson let let's like little long look lot love lovely made "
    "main make man many may maybe me mean mind mine minute moment more most much must my name near need "
    "neat never new next nice no not note nothing now of off often oh ok okay old on once one only open "
    "or other our out over own page paper part perhaps person pick piece place plain play please point "
    "prepare present pretty problem produce provide pull push put question quick quickly quite read ready "
    "really receive record remember reply request right room run said same saw say school see seem send "
    "set shall share she short should simply sir sit slowly small so some somebody someone something soon "
    "speak stand start still stop such suppose sure take talk task teacher tell test than thank that "
    "that's the their them then there these they thing think this those though time to today together "
    "too took tomorrow try turn under until up us use usual very wait want was watch way we week well "
    "went were what's when where while who whole why will wish with without wonder work would write "
    "written yes yet you you're your yours"
).split()
"""Common words that indicate neither a task nor a sort order."""

_ENDS = "now today here there then too again once quickly carefully right away at once soon".split()


def loose(rng: Random, part: str) -> str:
    """Return a part with one to five random words before it, and sometimes one or two after it."""
    words = rng.choices(OPENERS, k=rng.choice([1, 2, 2, 3, 3, 4, 5]))
    if rng.random() < 0.5:
        words[0] = words[0].capitalize()
    mark = rng.choice(["", "", "", "", ",", ":"])
    end = ""
    if rng.random() < 0.15:
        end = rng.choice([" ", " ", ", "]) + " ".join(rng.choices(_ENDS, k=rng.choice([1, 1, 2])))
    return f"{' '.join(words)}{mark} {part}{end}{rng.choice(['', '', '.', '?'])}"
