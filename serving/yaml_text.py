"""Reads YAML from files and flags, with one exception type for all errors.

For malformed values, PyYAML raises other exceptions (``2027-13-01``: ValueError,
``!!timestamp x``: AttributeError). At a nesting depth of a few thousand brackets, its C loader
overflows the stack, which kills the process.
"""

from typing import Any

import yaml

MAX_DEPTH = 64
"""Maximum nesting depth of lists and maps."""

# If PyYAML was built with libyaml, its C loader is ten times as fast for thousands of keys.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class NotYaml(ValueError):
    """The text is not valid YAML, or contains a malformed value."""

    def __init__(self, reason: str, line: int | None = None) -> None:
        super().__init__(reason if line is None else f"line {line}: {reason}")
        self.line = line
        """Line number, starting at 1; None: unknown."""


def read_yaml(text: str) -> Any:
    """Return the value of a YAML document.

    Raises:
        NotYaml: The text is not valid YAML, contains a malformed value, or nests too deeply.
    """
    try:
        _check_depth(text)
        return yaml.load(text, Loader=_Loader)  # noqa: S506  a safe loader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or "it cannot be parsed"
        raise NotYaml(reason, None if mark is None else mark.line + 1) from error
    except NotYaml:
        raise
    except Exception as error:
        raise NotYaml(f"malformed value ({error})") from error


def _check_depth(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                mark = event.start_mark
                line = None if mark is None else mark.line + 1
                raise NotYaml(f"nested more than {MAX_DEPTH} deep", line)
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
