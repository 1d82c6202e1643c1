"""YAML from files and flags, with one kind of error for all that can be wrong with it.

PyYAML raises what it meets for a value of a wrong form (``2027-13-01`` is a ValueError,
``!!timestamp x`` an AttributeError), and its loader in C runs off the stack, which ends the
process, where brackets nest some thousand deep.
"""

from typing import Any

import yaml

DEEPEST = 64
"""Lists and maps inside each other."""

# libyaml, where it is there: ten times as fast for files with thousands of keys.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class NotYaml(ValueError):
    """A text is not YAML, or holds a value that YAML cannot read."""

    def __init__(self, reason: str, line: int | None = None) -> None:
        super().__init__(reason if line is None else f"line {line}: {reason}")
        self.line = line
        """From 1; None if it is not known."""


def read_yaml(text: str) -> Any:
    """Return what a text holds.

    Raises:
        NotYaml: it cannot be read.
    """
    try:
        _check_depth(text)
        return yaml.load(text, Loader=_Loader)  # noqa: S506  the safe loader, in C
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or "it cannot be parsed"
        raise NotYaml(reason, None if mark is None else mark.line + 1) from error
    except NotYaml:
        raise
    except Exception as error:
        raise NotYaml(f"a value has not the form that it seems to have ({error})") from error


def _check_depth(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > DEEPEST:
                mark = event.start_mark
                line = None if mark is None else mark.line + 1
                raise NotYaml(f"nested more than {DEEPEST} deep", line)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
