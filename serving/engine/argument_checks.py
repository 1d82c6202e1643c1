"""Checks of vLLM's arguments, with errors that name the setting.

For an invalid argument, argparse exits the process and vLLM prints pages of text. The functions
here raise a one-line ``SettingsError`` instead.
"""

import dataclasses
import difflib
import json
from typing import Any, NoReturn

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from vllm.config import VllmConfig
from vllm.config.structured_outputs import StructuredOutputsConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMError
from vllm.utils.argparse_utils import FlexibleArgumentParser

from serving.errors import SettingsError
from serving.settings import Settings

_REJECTIONS = (VLLMError, ValueError, TypeError, NotImplementedError, AssertionError, OSError)
"""Exceptions that vLLM raises for invalid arguments."""


class ArgumentParser(FlexibleArgumentParser):
    """Argument parser that raises ``SettingsError`` instead of exiting the process."""

    def error(self, message: str) -> NoReturn:
        """Raise an error with the message that argparse would print.

        Raises:
            SettingsError: Always.
        """
        lines = [line.strip() for line in message.splitlines()]
        text = " ".join(line for line in lines if not line.startswith("For further"))
        raise SettingsError(f"vLLM rejects the engine arguments: {text.partition(' [type=')[0]}")


def own_arguments(settings: Settings) -> dict[str, Any]:
    """Return ``engine.args`` by field name of ``AsyncEngineArgs``, with type-checked values.

    Raises:
        SettingsError: vLLM has no such argument, or the value has the wrong type.
    """
    fields = {field.name: field.type for field in dataclasses.fields(AsyncEngineArgs)}
    checked: dict[str, Any] = {}
    for given, value in settings.engine.args.items():
        name = given.replace("-", "_")
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise SettingsError(f"engine.args.{given}: vLLM has no such engine argument{hint}")
        checked[name] = _checked(given, value, fields[name])
    return checked


def build_arguments(args: dict[str, Any]) -> AsyncEngineArgs:
    """Return vLLM's argument object.

    Args:
        args: Values by field name of ``AsyncEngineArgs``.

    Raises:
        SettingsError: vLLM rejects an argument.
    """
    try:
        # vLLM converts a mapping to a config object for every group except this one.
        if isinstance(args.get("structured_outputs_config"), dict):
            group = StructuredOutputsConfig(**args["structured_outputs_config"])
            args = args | {"structured_outputs_config": group}
        return AsyncEngineArgs(**args)
    except ValidationError as error:
        raise SettingsError(_explain(error)) from error
    except _REJECTIONS as error:
        raise SettingsError(f"vLLM rejects the engine arguments: {first_line(error)}") from error


def engine_config(args: AsyncEngineArgs) -> VllmConfig:
    """Return vLLM's configuration, which validates the arguments together and with the model.

    Raises:
        SettingsError: vLLM rejects the arguments. The message is the first line of vLLM's error.
    """
    try:
        return args.create_engine_config()
    except ValidationError as error:
        raise SettingsError(_explain(error)) from error
    except _REJECTIONS as error:
        raise SettingsError(f"vLLM rejects the engine arguments: {first_line(error)}") from error


def flag(key: str, value: Any, known: set[str]) -> list[str]:
    """Return an argument as words of vLLM's command line.

    Args:
        key: Field name of ``AsyncEngineArgs``.
        value: Value of the field; None yields an empty list.
        known: Flags of the command line; other flags yield an empty list.
    """
    name = "--" + key.replace("_", "-")
    if name not in known or value is None:
        return []
    if isinstance(value, bool):
        negative = "--no-" + name[2:]
        return [name] if value else [negative] if negative in known else []
    if isinstance(value, dict):
        return [name, json.dumps(value)]
    if isinstance(value, list | tuple):
        return [name, *map(str, value)]
    return [name, str(value)]


def first_line(error: object) -> str:
    """Return the first non-empty line of an error's text, or the name of its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _checked(given: str, value: Any, hint: Any) -> Any:
    if isinstance(hint, str) or dataclasses.is_dataclass(hint) or isinstance(value, dict):
        return value  # a group of arguments, which vLLM builds and validates
    try:
        adapter = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticUserError:
        return value
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        raise SettingsError(f"engine.args.{given}: {error.errors()[0]['msg']}") from error


def _explain(error: ValidationError) -> str:
    """Return one line that lists the arguments rejected by vLLM's validation."""
    parts = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"]) or error.title
        parts.append(f"{where}: {first_line(item['msg'])}")
    return "vLLM rejects the engine arguments: " + "; ".join(parts)
