"""From our settings to vLLM's arguments, for ranks and for routers.

Both come from the same table, so that a router reads a request as the rank will.
"""

import argparse
import dataclasses
import difflib
import json
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from vllm.config import VllmConfig
from vllm.config.structured_outputs import StructuredOutputsConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.exceptions import VLLMError
from vllm.transformers_utils.config import get_config
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.executor import Executor

from serving.engine.environment import engine_environment
from serving.engine.in_process import InProcessExecutor
from serving.errors import SettingsError
from serving.settings import Platform, Settings

__all__ = [
    "engine_args",
    "engine_config",
    "engine_environment",
    "is_mixture",
    "router_args",
    "router_vllm_config",
]

_WORKER_EXTENSION = "serving.engine.worker_extension.WorkerExtension"

_EXPERT_COUNTS = ("n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts")
"""What models call their number of routed experts in config.json."""

_COMPACT_JSON = {"backend": "xgrammar", "disable_any_whitespace": True}
"""JSON allows white space without end between its parts, and small models take that road: an
answer held to a schema would run to max_tokens and not be JSON. Only with a named backend can
vLLM forbid it; ``engine.args.structured_outputs_config`` overrides both."""

_REFUSALS = (VLLMError, ValueError, TypeError, NotImplementedError, AssertionError, OSError)
"""What vLLM raises when it does not like its arguments."""


def engine_args(
    settings: Settings,
    *,
    rank: int = 0,
    address: str = "127.0.0.1",
    rpc_port: int = 0,
) -> AsyncEngineArgs:
    """Return the engine arguments of one rank.

    Args:
        settings: all settings.
        rank: index of the rank in its group.
        address: where rank 0 of the group runs.
        rpc_port: free port there, the same for all ranks of the group.

    Raises:
        SettingsError: ``engine.args`` names something that vLLM does not know, or gives it a
            value of the wrong type; the model cannot be read; or vLLM would answer wrongly.

    """
    args = _common(settings)
    args |= {
        "worker_extension_cls": _WORKER_EXTENSION,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        "tensor_parallel_size": settings.group.tensor_parallel,
        "distributed_executor_backend": _executor(settings),
    }
    ranks = settings.group.data_parallel
    # Ranks of a dense model have nothing to tell each other: each is an engine of its own.
    if is_mixture(settings):
        args["enable_expert_parallel"] = ranks * settings.group.tensor_parallel > 1
        if ranks > 1:
            _refuse_wrong_answers(settings)
            args |= {
                "data_parallel_size": ranks,
                "data_parallel_rank": rank,
                "data_parallel_address": address,
                "data_parallel_rpc_port": rpc_port,
            }
    if settings.engine.speculative != "none":
        args["per_request_spec_decode_metrics"] = "summary"
    if settings.telemetry.otlp_endpoint is not None:
        args["otlp_traces_endpoint"] = settings.telemetry.otlp_endpoint
    if settings.platform is Platform.CPU:
        args["kv_cache_memory_bytes"] = int(settings.engine.kv_cache_gib * 2**30)
    return _build(args | _own_arguments(settings))


def engine_config(args: AsyncEngineArgs) -> VllmConfig:
    """Have vLLM check ``args`` together and with the model.

    Raises:
        SettingsError: vLLM refuses them; the message is its own first line.
    """
    try:
        return args.create_engine_config()
    except ValidationError as error:
        raise SettingsError(_explain(error)) from error
    except _REFUSALS as error:
        raise SettingsError(f"vLLM refuses its arguments: {_first_line(error)}") from error


def router_args(settings: Settings) -> argparse.Namespace:
    """Return what vLLM's OpenAI server would have parsed from its command line.

    Raises:
        SettingsError: vLLM refuses an argument.
    """
    parser = make_arg_parser(_Parser(allow_abbrev=False))
    # argparse has no public way to list its options.
    known = {option for action in parser._actions for option in action.option_strings}  # noqa: SLF001
    line: list[str] = []
    for key, value in (_common(settings) | _own_arguments(settings)).items():
        line += _flag(key, value, known)
    if settings.router.tool_parser is not None:
        line += ["--enable-auto-tool-choice", "--tool-call-parser", settings.router.tool_parser]
        line += ["--tool-strict-level", settings.router.tool_strict_level]
    line += [
        "--host",
        settings.router.host,
        "--port",
        str(settings.router.rest_port),
        "--disable-log-stats",
        "--disable-uvicorn-access-log",
    ]
    args: argparse.Namespace = parser.parse_args(line)
    return args


def router_vllm_config(settings: Settings) -> VllmConfig:
    """Return the configuration of an engine like the ranks', alone; for a router.

    Raises:
        SettingsError: vLLM refuses the arguments or the model.
    """
    args = _common(settings) | _own_arguments(settings)
    return engine_config(_build(args | {"disable_log_stats": True}))


def is_mixture(settings: Settings) -> bool:
    """Tell whether the model has routed experts.

    Raises:
        SettingsError: the model's configuration cannot be read.
    """
    path, args = settings.model.path, settings.engine.args
    if path.startswith(("/", ".", "~")) and not (Path(path) / "config.json").is_file():
        raise SettingsError(f"model.path: {path} is not a folder with a config.json")
    try:
        config = get_config(
            path,
            trust_remote_code=bool(args.get("trust_remote_code", False)),
            revision=args.get("revision"),
        )
    except Exception as error:
        # transformers raises many kinds; all mean that the folder or id is not a model.
        raise SettingsError(
            f"model.path: cannot read the model {path}: {_first_line(error)}",
        ) from error
    text = config.get_text_config()
    return any(getattr(text, name, 0) for name in _EXPERT_COUNTS)


def _common(settings: Settings) -> dict[str, Any]:
    """Arguments that ranks and routers share."""
    engine = settings.engine
    args: dict[str, Any] = {
        "model": settings.model.path,
        "served_model_name": [settings.model.name],
        "dtype": engine.dtype,
        "max_num_seqs": engine.max_num_seqs,
        "structured_outputs_config": _COMPACT_JSON,
    }
    if engine.max_model_len is not None:
        args["max_model_len"] = engine.max_model_len
    if engine.speculative != "none":
        args["speculative_config"] = {
            "method": engine.speculative,
            "num_speculative_tokens": engine.speculative_tokens,
        }
    if settings.router.reasoning_parser is not None:
        # The engine needs it too: a grammar waits until the reasoning is over.
        args["reasoning_parser"] = settings.router.reasoning_parser
    if settings.platform is Platform.CPU:
        # Compiling takes half a minute and changes how numbers round.
        args["enforce_eager"] = True
    return args


def _executor(settings: Settings) -> type[Executor] | str:
    """Choose who runs a rank's workers: itself, since inside a placement group vLLM asks Ray."""
    alone = settings.group.tensor_parallel == 1
    if settings.platform is Platform.CPU and alone:
        return InProcessExecutor
    return "uni" if alone else "mp"


def _refuse_wrong_answers(settings: Settings) -> None:
    """Refuse what vLLM 0.32 does wrong without a sign, and what is mended on CPU only."""
    gpu, workers = settings.platform is Platform.GPU, settings.group.tensor_parallel
    if gpu and workers > 1 and _own_arguments(settings).get("enforce_eager"):
        raise SettingsError(
            "engine.args.enforce_eager: with group.data_parallel and group.tensor_parallel above "
            "1 vLLM 0.32 then answers a request that is alone on its rank with nonsense (vLLM "
            "issue 50154); leave it out, or set group.tensor_parallel to 1"
        )


def _own_arguments(settings: Settings) -> dict[str, Any]:
    """Check ``engine.args`` one by one, so that an error names its argument."""
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


def _checked(given: str, value: Any, hint: Any) -> Any:
    if isinstance(hint, str) or dataclasses.is_dataclass(hint) or isinstance(value, dict):
        return value  # a group of arguments, which vLLM builds and checks itself
    try:
        adapter = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticUserError:
        return value
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        raise SettingsError(f"engine.args.{given}: {error.errors()[0]['msg']}") from error


def _build(args: dict[str, Any]) -> AsyncEngineArgs:
    try:
        # vLLM builds its other groups from a mapping by itself.
        if isinstance(args.get("structured_outputs_config"), dict):
            group = StructuredOutputsConfig(**args["structured_outputs_config"])
            args = args | {"structured_outputs_config": group}
        return AsyncEngineArgs(**args)
    except ValidationError as error:
        raise SettingsError(_explain(error)) from error
    except _REFUSALS as error:
        raise SettingsError(f"vLLM refuses its arguments: {_first_line(error)}") from error


def _explain(error: ValidationError) -> str:
    """Name the arguments that vLLM's own checks refuse, in one line."""
    parts = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"]) or error.title
        parts.append(f"{where}: {_first_line(item['msg'])}")
    return "vLLM refuses its arguments: " + "; ".join(parts)


def _first_line(error: object) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


class _Parser(FlexibleArgumentParser):
    """Reports a bad argument as our error instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print."""
        lines = [line.strip() for line in message.splitlines()]
        text = " ".join(line for line in lines if not line.startswith("For further"))
        raise SettingsError(f"vLLM refuses its arguments: {text.partition(' [type=')[0]}")


def _flag(key: str, value: Any, known: set[str]) -> list[str]:
    """Write one argument as vLLM's command line has it; nothing if it has no such flag."""
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
