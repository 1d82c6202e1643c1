"""The argument parser of every command that is no part of ``moe-serving``.

It takes flags by their whole names only (argparse's own guesses what a beginning means), and its
errors are one line that names the flag, the value and what is accepted, with exit code 2.
``type=`` takes the readers of ``flag_values``; ``int`` and ``float`` are put into words too.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from typing_extensions import override

from serving.flag_values import BadValue, Number, Whole, refusal, unknown

EXIT_USAGE = 2
_IN_WORDS: dict[object, Any] = {
    int: Whole("the value", at_least=-(10**18), at_most=10**18),
    float: Number("the value"),
}


class FlagParser(argparse.ArgumentParser):
    """An ``ArgumentParser`` that abbreviates nothing; parsers of its subcommands are likewise."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        if options.setdefault("allow_abbrev", False):
            raise TypeError("flags are not abbreviated")
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*arguments, **options)

    @override
    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Read the command line; ends the process with 2 where it is wrong."""
        found, rest = self.parse_known_args(args, namespace)
        if rest:
            flags = [word for word in rest if word.startswith("-")]
            self.error(unknown(flags[0], self.flags()) if flags else f"{rest[0]} is not accepted")
        return found

    @override
    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Read what is known; values that begin with "-" (``-inf``) belong to their flag."""
        words = self._joined(sys.argv[1:] if args is None else args)
        return super().parse_known_args(words, namespace)

    @override
    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line, and end the process."""
        text = message.removeprefix("argument ")
        text = text.replace("the following arguments are required:", "missing:")
        text = text.replace("not allowed with argument", "not together with")
        sys.stderr.write(f"error: {text}\nhint:  {self.prog} --help lists the flags\n")
        raise SystemExit(EXIT_USAGE)

    def flags(self) -> list[str]:
        """Return all flags, those of subcommands among them."""
        return sorted(
            {
                name
                for parser in self.parsers()
                for name in parser._option_string_actions  # noqa: SLF001  argparse tells no other way
                if name.startswith("--")
            }
        )

    def parsers(self) -> Iterator[argparse.ArgumentParser]:
        """Yield this one and those of its subcommands."""
        yield self
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
                for parser in set(action.choices.values()):
                    yield from parser.parsers()

    def _joined(self, words: Sequence[str]) -> list[str]:
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
        kind = _IN_WORDS.get(action.type, action.type)
        if kind is None:
            return arg_string
        try:
            return kind(arg_string)
        except (BadValue, argparse.ArgumentTypeError) as error:
            self.error(refusal(_name(action), arg_string, error))
        except ValueError:
            self.error(refusal(_name(action), arg_string, _accepted(action)))

    @override
    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            words = ", ".join(map(str, action.choices))
            self.error(refusal(_name(action), str(value), f"one of {words} is accepted"))


def _name(action: argparse.Action) -> str:
    if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
        return "command"
    return action.option_strings[0] if action.option_strings else str(action.metavar or action.dest)


def _accepted(action: argparse.Action) -> str:
    if action.choices is not None:
        return f"one of {', '.join(map(str, action.choices))} is accepted"
    kind = _IN_WORDS.get(action.type, action.type)
    if kind is None or isinstance(kind, type):
        return action.help or "any text is accepted"
    return str(kind) if not hasattr(kind, "__name__") else action.help or str(action.metavar)
