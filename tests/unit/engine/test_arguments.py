"""vLLM's arguments from the settings, and the errors for invalid ones."""

import json

import pytest

from serving.engine.arguments import (
    engine_args,
    is_mixture,
    router_args,
    router_vllm_config,
)
from serving.engine.environment import engine_environment
from serving.errors import SettingsError
from serving.settings import (
    BUNDLED_MODEL,
    EngineSettings,
    GroupSettings,
    ModelSettings,
    Platform,
    RouterSettings,
    Settings,
    TelemetrySettings,
)


def test_a_rank_of_several():
    settings = Settings(group=GroupSettings(data_parallel=4))
    args = engine_args(settings, rank=2, address="10.0.0.7", rpc_port=4321)
    assert args.model == str(BUNDLED_MODEL)
    assert args.served_model_name == ["pocket-r1"]
    assert (args.data_parallel_size, args.data_parallel_rank) == (4, 2)
    assert (args.data_parallel_address, args.data_parallel_rpc_port) == ("10.0.0.7", 4321)
    assert args.enable_expert_parallel
    assert args.enforce_eager
    assert args.dtype == "float32"
    assert args.kv_cache_memory_bytes == 2**29
    assert args.reasoning_parser == "deepseek_r1"
    assert args.speculative_config is None
    assert args.worker_extension_cls == "serving.engine.worker_extension.WorkerExtension"


def test_adapters_are_enabled_for_all_but_the_experts():
    plain = engine_args(Settings())
    assert not plain.enable_lora
    model = ModelSettings(lora={"folder": "/adapters", "slots": 3, "max_rank": 32})
    args = engine_args(Settings(model=model))
    assert args.enable_lora
    assert (args.max_loras, args.max_cpu_loras, args.max_lora_rank) == (3, 3, 32)
    assert {"q_proj", "o_proj", "gate_proj"} <= set(args.lora_target_modules)
    assert not any("expert" in name or name == "kv_b_proj" for name in args.lora_target_modules)
    assert not router_args(Settings(model=model)).enable_lora, "routers load no adapters"


@pytest.mark.parametrize(
    ("ranks", "tensor_parallel", "want"),
    [(1, 1, False), (1, 2, True), (2, 1, True)],
    ids=["alone", "tensor-parallel", "data-parallel"],
)
def test_experts_are_split_whenever_there_are_several_workers(ranks, tensor_parallel, want):
    group = GroupSettings(data_parallel=ranks, tensor_parallel=tensor_parallel)
    args = engine_args(Settings(group=group), rpc_port=4321)
    assert args.enable_expert_parallel is want
    assert args.tensor_parallel_size == tensor_parallel
    assert args.data_parallel_rank == (0 if ranks > 1 else None)


def test_speculation_with_the_models_own_layer():
    engine = EngineSettings(speculative="mtp", speculative_tokens=2, max_model_len=512)
    args = engine_args(Settings(engine=engine, group=GroupSettings(data_parallel=1)))
    assert args.speculative_config == {"method": "mtp", "num_speculative_tokens": 2}
    assert args.per_request_spec_decode_metrics == "summary"
    assert args.max_model_len == 512


def test_a_gpu_gets_vllms_own_defaults():
    settings = Settings(platform=Platform.GPU, group=GroupSettings(data_parallel=1))
    args = engine_args(settings)
    assert not args.enforce_eager
    assert args.kv_cache_memory_bytes is None


@pytest.mark.parametrize(
    ("platform", "ranks", "workers", "args", "refused"),
    [
        pytest.param("gpu", 2, 2, {"enforce_eager": True}, True, id="wrong"),
        pytest.param("gpu", 2, 2, {"enforce-eager": True}, True, id="by-its-flag"),
        pytest.param("gpu", 2, 2, {}, False, id="compiled"),
        pytest.param("gpu", 2, 2, {"enforce_eager": "false"}, False, id="compiled-in-words"),
        pytest.param("gpu", 2, 1, {"enforce_eager": True}, False, id="one-worker-a-rank"),
        pytest.param("gpu", 1, 2, {"enforce_eager": True}, False, id="one-rank"),
        pytest.param("cpu", 2, 2, {"enforce_eager": True}, False, id="mended-on-cpu"),
    ],
)
def test_what_vllm_would_answer_wrongly_is_refused(platform, ranks, workers, args, refused):
    settings = Settings(
        platform=platform,
        group=GroupSettings(data_parallel=ranks, tensor_parallel=workers),
        engine=EngineSettings(args=args),
    )
    if refused:
        with pytest.raises(SettingsError, match="vLLM issue 50154"):
            engine_args(settings, rpc_port=4321)
    else:
        assert engine_args(settings, rpc_port=4321).tensor_parallel_size == workers


def test_engine_arguments_pass_through_and_win():
    engine = EngineSettings(
        args={"max-num-batched-tokens": "4096", "seed": 7, "enforce_eager": False},
    )
    settings = Settings(engine=engine, group=GroupSettings(data_parallel=1))
    args = engine_args(settings)
    assert (args.max_num_batched_tokens, args.seed, args.enforce_eager) == (4096, 7, False)
    parsed = router_args(settings)
    assert (parsed.max_num_batched_tokens, parsed.seed) == (4096, 7)
    assert parsed.enforce_eager is False


@pytest.mark.parametrize("path", ["/nowhere/at/all", "./nothing"])
def test_a_model_that_is_not_there(path):
    with pytest.raises(SettingsError, match=r"model\.path: .* not a folder with a config\.json"):
        engine_args(Settings(model=ModelSettings(path=path)))


def test_ranks_of_a_dense_model_are_engines_of_their_own(tmp_path):
    config = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "hidden_size": 64}
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    settings = Settings(model=ModelSettings(path=str(tmp_path), name="dense"))
    assert not is_mixture(settings)
    args = engine_args(settings, rank=1, rpc_port=4321)
    assert (args.data_parallel_size, args.data_parallel_rank) == (1, None)
    assert not args.enable_expert_parallel
    assert is_mixture(Settings())


def test_what_the_routers_server_would_have_parsed():
    router = RouterSettings(rest_port=8123, tool_parser="hermes", reasoning_parser=None)
    parsed = router_args(Settings(router=router))
    assert (parsed.host, parsed.port) == ("127.0.0.1", 8123)
    assert parsed.served_model_name == ["pocket-r1"]
    assert parsed.enable_auto_tool_choice
    assert parsed.tool_call_parser == "hermes"
    assert not parsed.structured_outputs_config.reasoning_parser
    assert parsed.disable_uvicorn_access_log
    without = router_args(Settings(router=RouterSettings(tool_parser=None)))
    assert not without.enable_auto_tool_choice


def test_the_router_reads_the_model_as_a_rank_does():
    settings = Settings()
    router = router_vllm_config(settings)
    assert router.parallel_config.data_parallel_size == 1
    assert str(router.model_config.dtype) == "torch.float32"
    assert router.structured_outputs_config.reasoning_parser == "deepseek_r1"


def test_streamed_weights_are_the_ranks_business():
    """As the chart renders model.stream; the loader itself is not run."""
    stream = {
        "load_format": "runai_streamer",
        "model_weights": "s3://models/r1",
        "model_loader_extra_config": {"concurrency": 32},
    }
    settings = Settings(engine=EngineSettings(args=stream))
    args = engine_args(settings, rank=0, address="127.0.0.1", rpc_port=1)
    assert (args.model, args.model_weights) == (str(BUNDLED_MODEL), "s3://models/r1")
    config = args.create_engine_config()
    assert config.load_config.load_format == "runai_streamer"
    assert config.load_config.model_loader_extra_config == {"concurrency": 32}
    # Config and tokenizer are on the volume: a router does not read object storage.
    assert router_vllm_config(settings).model_config.model == str(BUNDLED_MODEL)


def test_ranks_trace_where_routers_do_and_routers_by_themselves():
    settings = Settings(
        telemetry=TelemetrySettings(
            otlp_endpoint="https://collector:4318/v1/traces", otlp_protocol="http/protobuf"
        )
    )
    assert engine_args(settings).otlp_traces_endpoint == "https://collector:4318/v1/traces"
    environment = engine_environment(settings)
    assert environment["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] == "http/protobuf"
    assert router_args(settings).otlp_traces_endpoint is None


def test_without_a_collector_vllm_traces_nothing():
    assert engine_args(Settings()).otlp_traces_endpoint is None
    assert not [name for name in engine_environment(Settings()) if name.startswith("OTEL_")]
