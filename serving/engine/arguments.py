"""vLLM's arguments from the settings, for ranks and for routers.

Both are built from the same table, so a router interprets a request exactly as the rank does.
"""

import argparse
from pathlib import Path
from typing import Any

from vllm.config import VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.transformers_utils.config import get_config
from vllm.v1.executor import Executor

from serving.engine.argument_checks import (
    ArgumentParser,
    build_arguments,
    engine_config,
    first_line,
    flag,
    own_arguments,
)
from serving.engine.worker_extension import InProcessExecutor
from serving.errors import SettingsError
from serving.link.adapter_files import MODULES
from serving.settings import Platform, Settings

_WORKER_EXTENSION = "serving.engine.worker_extension.WorkerExtension"

_EXPERT_COUNTS = ("n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts")
"""Keys under which models state the number of routed experts in config.json."""

_COMPACT_JSON = {"backend": "xgrammar", "disable_any_whitespace": True}
"""Structured-output defaults that forbid whitespace between JSON tokens. Small models generate
unlimited whitespace, so a schema-constrained answer would reach max_tokens without being valid
JSON. vLLM supports the option only with a named backend. Overridden by
``engine.args.structured_outputs_config``."""


def engine_args(
    settings: Settings,
    *,
    rank: int = 0,
    address: str = "127.0.0.1",
    rpc_port: int = 0,
) -> AsyncEngineArgs:
    """Return the engine arguments of one rank.

    Args:
        settings: All settings.
        rank: Index of the rank in its group.
        address: Address of rank 0's node.
        rpc_port: Free port on that node, the same for all ranks of the group.

    Raises:
        SettingsError: ``engine.args`` has an unknown argument or a value of the wrong type, the
            model cannot be read, or vLLM would generate wrong output with these settings.

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
    # Ranks of a dense model exchange no data: each is an independent engine.
    if is_mixture(settings):
        args["enable_expert_parallel"] = ranks * settings.group.tensor_parallel > 1
        if ranks > 1:
            _reject_wrong_output(settings)
            args |= {
                "data_parallel_size": ranks,
                "data_parallel_rank": rank,
                "data_parallel_address": address,
                "data_parallel_rpc_port": rpc_port,
            }
    if settings.model.runs_adapters:
        lora = settings.model.lora
        args |= {
            "enable_lora": True,
            "max_loras": lora.slots,
            "max_cpu_loras": lora.slots,
            "max_lora_rank": lora.max_rank,
            "lora_target_modules": sorted(MODULES),
        }
    if settings.engine.speculative != "none":
        args["per_request_spec_decode_metrics"] = "summary"
    if settings.telemetry.otlp_endpoint is not None:
        args["otlp_traces_endpoint"] = settings.telemetry.otlp_endpoint
    if settings.platform is Platform.CPU:
        args["kv_cache_memory_bytes"] = int(settings.engine.kv_cache_gib * 2**30)
    return build_arguments(args | own_arguments(settings))


def router_args(settings: Settings) -> argparse.Namespace:
    """Return the parsed command line for vLLM's OpenAI server.

    Raises:
        SettingsError: vLLM rejects an argument.
    """
    parser = make_arg_parser(ArgumentParser(allow_abbrev=False))
    # argparse has no public way to list its options.
    known = {option for action in parser._actions for option in action.option_strings}  # noqa: SLF001
    line: list[str] = []
    for key, value in (_common(settings) | own_arguments(settings)).items():
        line += flag(key, value, known)
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
    """Return a single-engine configuration with the ranks' arguments, for a router.

    Raises:
        SettingsError: vLLM rejects the arguments or the model.
    """
    args = _common(settings) | own_arguments(settings)
    return engine_config(build_arguments(args | {"disable_log_stats": True}))


def is_mixture(settings: Settings) -> bool:
    """Return whether the model has routed experts.

    Raises:
        SettingsError: The model's configuration cannot be read.
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
        # transformers raises errors of many types; each means that the path or id is not a model.
        raise SettingsError(
            f"model.path: cannot read the model {path}: {first_line(error)}",
        ) from error
    text = config.get_text_config()
    return any(getattr(text, name, 0) for name in _EXPERT_COUNTS)


def _common(settings: Settings) -> dict[str, Any]:
    """Return the arguments that ranks and routers share."""
    engine = settings.engine
    args: dict[str, Any] = {
        "model": settings.model.path,
        "served_model_name": [settings.model.name, *settings.model.aliases],
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
        # The engine needs it too: a grammar applies only after the reasoning has ended.
        args["reasoning_parser"] = settings.router.reasoning_parser
    if settings.platform is Platform.CPU:
        # Compilation takes half a minute and changes floating-point rounding.
        args["enforce_eager"] = True
    return args


def _executor(settings: Settings) -> type[Executor] | str:
    """Return vLLM's executor explicitly, because the default inside a placement group is Ray."""
    single = settings.group.tensor_parallel == 1
    if settings.platform is Platform.CPU and single:
        return InProcessExecutor
    return "uni" if single else "mp"


def _reject_wrong_output(settings: Settings) -> None:
    """Reject settings with which vLLM 0.32 silently computes wrong output on GPU."""
    gpu, workers = settings.platform is Platform.GPU, settings.group.tensor_parallel
    if gpu and workers > 1 and own_arguments(settings).get("enforce_eager"):
        raise SettingsError(
            "engine.args.enforce_eager: with group.data_parallel and group.tensor_parallel above "
            "1, vLLM 0.32 generates wrong output for a request that is alone on its rank (vLLM "
            "issue 50154); omit it, or set group.tensor_parallel to 1"
        )
