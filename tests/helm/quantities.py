"""Kubernetes' canonical form of a quantity, computed with fractions.

According to the description of ``resource.Quantity``, no precision is lost, no fractional digits
are written, and the exponent is as large as possible; a binary quantity that is below 1024 or not
an integer is written as a decimal one.
"""

import re
from fractions import Fraction

_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY = {"Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5, "Ei": 6}
_FORM = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)([numkMGTPE]?|[KMGTPE]i|[eE][-+]?[0-9]+)")


def canonical(text: str) -> str:
    """Return ``text`` in the form that Kubernetes writes.

    Raises:
        ValueError: The text is not a quantity.
    """
    found = _FORM.fullmatch(text)
    if found is None:
        raise ValueError(f"{text} is no quantity")
    number, suffix = Fraction(found[1]), found[2]
    if suffix in _BINARY:
        value = number * 1024 ** _BINARY[suffix]
        if value >= 1024 and value.denominator == 1:
            return _largest(value, 1024, ["", *_BINARY])
        return _decimal(value)
    if suffix in _DECIMAL:
        return _decimal(number * Fraction(10) ** _DECIMAL[suffix])
    return _decimal(number * Fraction(10) ** int(suffix[1:]), scientific=True)


def _largest(value: Fraction, base: int, suffixes: list[str]) -> str:
    power = max(n for n in range(len(suffixes)) if (value / base**n).denominator == 1)
    return f"{value / base**power}{suffixes[power]}"


def _decimal(value: Fraction, *, scientific: bool = False) -> str:
    if value == 0:
        return "0"
    exponents = sorted(_DECIMAL.values())
    fitting = [e for e in exponents if (value / Fraction(10) ** e).denominator == 1]
    exponent = max(fitting)
    suffix = {e: s for s, e in _DECIMAL.items()}[exponent]
    if scientific:
        suffix = f"e{exponent}" if exponent else ""
    return f"{value / Fraction(10) ** exponent}{suffix}"
