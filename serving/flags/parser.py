"""The argument parser of all commands outside ``moe-serving``.

Accepts flags only by their full names, whereas argparse by default accepts any unambiguous prefix.
An error is one line with the flag, its value and the accepted values; the exit code is 2. ``type=``
accepts the readers of ``values`` and ``paths``; ``int`` and ``float`` get readable error messages.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from typing_extensions import override

from serving.flags.messages import BadValue, refusal, unknown
from serving.flags.values import Number, WholeNumber

EXIT_USAGE = 2
_READERS: dict[object, Any] = {
    int: WholeNumber("the value", at_least=-(10**18), at_most=10**18),
    float: Number("the value"),
}
"""Readers that replace the Python types, for better error messages."""


class FlagParser(argparse.ArgumentParser):
    """An ``ArgumentParser`` without abbreviations; subcommands get parsers of the same class."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Create a parser with the arguments of ``ArgumentParser``.

        Raises:
            TypeError: ``allow_abbrev`` is true.
        """
        if options.setdefault("allow_abbrev", False):
            raise TypeError("flags are not abbreviated")
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*arguments, **options)

    @override
    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Parse the command line; exit with code 2 if it is invalid."""
        found, rest = self.parse_known_args(args, namespace)
        if rest:
            flags = [word for word in rest if word.startswith("-")]
            self.error(
                unknown(flags[0], self.flags()) if flags else f"unexpected argument {rest[0]}"
            )
        return found

    @override
    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse the known flags; a value may start with "-" (``--offset -inf``)."""
        words = self._joined(sys.argv[1:] if args is None else args)
        return super().parse_known_args(words, namespace)

    @override
    def error(self, message: str) -> NoReturn:
        """Print an error and a hint, and exit with code 2."""
        text = message.removeprefix("argument ")
        text = text.replace("the following arguments are required:", "missing:")
        text = text.replace("not allowed with argument", "cannot be used with")
        sys.stderr.write(f"error: {text}\nhint:  {self.prog} --help lists the flags\n")
        raise SystemExit(EXIT_USAGE)

    def flags(self) -> list[str]:
        """Return all flags, including those of subcommands."""
        return sorted(
            {
                name
                for parser in self.parsers()
                for name in parser._option_string_actions  # noqa: SLF001  argparse has no public way
                if name.startswith("--")
            }
        )

    def parsers(self) -> Iterator[argparse.ArgumentParser]:
        """Yield this parser and those of its subcommands."""
        yield self
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
                for parser in set(action.choices.values()):
                    yield from parser.parsers()

    def _joined(self, words: Sequence[str]) -> list[str]:
        """Return the command line with each flag joined to its value: ``--rate=1``."""
        known = self._option_string_actions
        joined: list[str] = []
        rest = iter(words)
        for word in rest:
            if word == "--":
                return [*joined, word, *rest]
            action = known.get(word)
            if word.startswith("--") and word.partition("=")[0] not in self.flags():
                self.error(unknown(word, self.flags()))
            joined.append(word)
            if action is None or action.nargs is not None:
                continue
            value = next(rest, None)
            if value is None or value in known or value == "--":
                self.error(f"{word} needs a value: {_accepted(action)}")
            joined[-1] = f"{word}={value}"
        return joined

    @override
    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        reader = _READERS.get(action.type, action.type)
        if reader is None:
            return arg_string
        try:
            return reader(arg_string)
        except (BadValue, argparse.ArgumentTypeError) as error:
            self.error(refusal(_name(action), arg_string, error))
        except ValueError:
            self.error(refusal(_name(action), arg_string, _accepted(action)))

    @override
    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            words = ", ".join(map(str, action.choices))
            self.error(refusal(_name(action), str(value), f"must be one of {words}"))


def _name(action: argparse.Action) -> str:
    if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
        return "command"
    return action.option_strings[0] if action.option_strings else str(action.metavar or action.dest)


def _accepted(action: argparse.Action) -> str:
    if action.choices is not None:
        return f"must be one of {', '.join(map(str, action.choices))}"
    reader = _READERS.get(action.type, action.type)
    if reader is None or isinstance(reader, type):
        return action.help or "any text"
    return str(reader) if not hasattr(reader, "__name__") else action.help or str(action.metavar)
