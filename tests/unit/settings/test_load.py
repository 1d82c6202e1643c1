"""Settings: pinned defaults, the order of the sources, and rejected values."""

import json
from pathlib import Path

import pytest

from serving.errors import SettingsError
from serving.settings import Platform, Settings, bundled_model, load_settings

# Users and scripts depend on these. A change here changes the contract: add it to CHANGELOG.
DEFAULTS = {
    "platform": "cpu",
    "models": [],
    "model": {
        "name": "pocket-r1",
        "aliases": [],
        "adapters": [],
        "lora": {
            "slots": 4,
            "max_rank": 16,
            "folder": None,
            "base_names": [],
            "load_timeout": 60.0,
        },
    },
    "group": {
        "count": 1,
        "pool": "default",
        "data_parallel": 2,
        "tensor_parallel": 1,
        "placement": "pack",
        "node_resource": None,
        "cpus_per_rank": 1.0,
        "start_timeout": 600.0,
        "placement_timeout": 60.0,
    },
    "engine": {
        "kind": "vllm",
        "dtype": "float32",
        "max_model_len": None,
        "max_num_seqs": 64,
        "speculative": "none",
        "speculative_tokens": 1,
        "kv_cache_gib": 0.5,
        "threads_per_rank": 1,
        "exchange": "auto",
        "exchange_spin_us": 50,
        "args": {},
    },
    "router": {
        "host": "127.0.0.1",
        "rest_port": 8000,
        "grpc_port": 50051,
        "join_host": "127.0.0.1",
        "join_port": 50052,
        "max_body_bytes": 4194304,
        "request_timeout": 600.0,
        "max_inflight_requests": 4096,
        "loaded_models": 8,
        "max_streams_per_connection": 1024,
        "max_choices": 128,
        "keepalive_interval": 10.0,
        "write_timeout": 60.0,
        "drain_timeout": 10.0,
        "reasoning_parser": "deepseek_r1",
        "tool_parser": "deepseek_v3",
        "tool_strict_level": "auto",
        "cors_origins": [],
    },
    "link": {
        "routers": ["127.0.0.1:50052"],
        "connect_timeout": 5.0,
        "hello_timeout": 10.0,
        "backoff_initial": 0.2,
        "backoff_max": 5.0,
        "load_interval": 0.5,
        "keepalive": 5.0,
        "outbox_limit": 65536,
        "max_frame_bytes": 67108864,
        "token_file": None,
        "tls_ca_file": None,
        "tls_cert_file": None,
        "tls_key_file": None,
        "tls_server_name": None,
    },
    "fleet": {
        "stall_timeout": 10.0,
        "history_groups": 16,
        "canary_timeout": 30.0,
        "max_resumes": 3,
        "suspect_tokens": 32,
        "suspect_losses": 2,
    },
    "admission": {
        "queue_requests": 1024,
        "queue_tokens": 2_000_000,
        "ageing": 15.0,
        "max_wait": 60.0,
        "rate_window": 30.0,
        "recheck_interval": 0.1,
        "requests_per_minute": None,
        "tokens_per_minute": None,
        "concurrent_streams": None,
        "redis_url": None,
        "redis_password_file": None,
        "redis_timeout": 0.25,
        "redis_down": "open",
    },
    "routing": {
        "weights": {
            "load": 1.0,
            "kv_room": 0.25,
            "prefix": 2.0,
            "session": 4.0,
            "balance": 0.25,
            "adapter": 3.0,
        },
        "kv_headroom": 1.0,
        "queue_allowance": 0.25,
        "engine_queue": 0.5,
        "session_load_bound": 1.5,
        "affinity_slack": 2048,
        "adapter_replicas": 4,
        "sessions": 65536,
        "session_ttl": 1800.0,
        "prefix_blocks": 262144,
        "history_blocks": 4096,
        "history_trust": 0.5,
    },
    "ray": {
        "address": None,
        "app_name": "moe-serving",
        "dashboard": False,
        "dashboard_port": 8265,
        "num_cpus": None,
    },
    "ledger": {
        "directory": None,
        "database_url": None,
        "database_password_file": None,
        "database_timeout": 10.0,
        "flush_interval": 1.0,
        "max_spool_bytes": 1073741824,
        "budget_timeout": 0.25,
        "budget_down": "open",
        "tariff_file": None,
        "gpu_hour_price": None,
    },
    "batch": {
        "directory": None,
        "database_url": None,
        "database_password_file": None,
        "database_timeout": 10.0,
        "storage_url": None,
        "storage_endpoint": None,
        "storage_timeout": 10.0,
        "max_file_bytes": 2**30,
        "max_lines": 1_000_000,
        "tenant_bytes": 10 * 2**30,
        "tenant_files": 1000,
        "tenant_batches": 100,
        "max_window": 7 * 86400.0,
        "retention": 30 * 86400.0,
        "max_running_lines": 256,
        "lease": 30.0,
        "interval": 1.0,
        "itl_slo": None,
        "max_step_growth": 0.1,
        "peak_window": 60.0,
        "max_idle_step": None,
        "ttft_slo": None,
        "kv_reserve": 0.1,
    },
    "console": {
        "enabled": True,
        "interval": 1.0,
        "max_streams": 64,
        "stall_timeout": 20.0,
    },
    "telemetry": {
        "log_level": "info",
        "log_format": "auto",
        "tenant_labels": 100,
        "rank_metrics_port": 0,
        "otlp_endpoint": None,
        "otlp_protocol": "grpc",
        "trace_ratio": 1.0,
    },
    "autoscaler": {
        "min_groups": 1,
        "max_groups": 1,
        "interval": 5.0,
        "prometheus_url": "http://127.0.0.1:9090",
        "prometheus_timeout": 5.0,
        "selector": "",
        "window": 60.0,
        "scrape_interval": 5.0,
        "max_age": 30.0,
        "max_gap": 0.5,
        "routers": ["http://127.0.0.1:8000"],
        "drain_addresses": ["127.0.0.1:50051"],
        "router_timeout": 3.0,
        "api_key_file": None,
        "ca_file": None,
        "dashboard_url": "http://127.0.0.1:8265",
        "dashboard_token_file": None,
        "ray_timeout": 10.0,
        "drain_timeout": 30.0,
        "ttft_slo": 2.0,
        "itl_slo": 0.2,
        "queue_wait_slo": 2.0,
        "group_tokens_per_second": None,
        "band_low": 0.5,
        "band_high": 0.8,
        "pressure_clamp": 5.0,
        "backlog_horizon": 30.0,
        "up_window": 0.0,
        "down_window": 300.0,
        "idle_timeout": 300.0,
        "warming_timeout": 600.0,
        "max_step_up": 4,
        "max_step_down": 1,
        "gpus_per_group": None,
        "gpu_hours_per_day": None,
        "max_gpus": None,
        "max_nodes": None,
        "batch": {"schedule": [], "max_hourly_cost": None},
        "schedule": [],
        "state_file": None,
        "record_file": None,
        "metrics_host": "127.0.0.1",
        "metrics_port": 9464,
        "kubernetes": {
            "enabled": False,
            "namespace": "default",
            "cluster": "",
            "service": "",
            "worker_group": "ranks",
            "workers_per_group": 1,
            "api_timeout": 10.0,
            "watch_timeout": 30.0,
            "attempts": 4,
            "lease": "moe-serving-autoscaler",
            "disruption_budget": "",
            "lease_seconds": 15.0,
        },
    },
    "security": {
        "insecure": False,
        "tls_elsewhere": False,
        "keys_file": None,
        "operator_key_file": None,
        "open_metrics": False,
        "tls_cert_file": None,
        "tls_key_file": None,
        "tls_client_ca_file": None,
        "operator_tls_cert_file": None,
        "operator_tls_key_file": None,
        "join_token_file": None,
        "join_tls_cert_file": None,
        "join_tls_key_file": None,
        "join_tls_client_ca_file": None,
        "reload_interval": 5.0,
        "max_header_bytes": 32768,
        "max_headers": 100,
        "max_body_values": 16384,
        "max_pending_bytes": 2**28,
        "header_timeout": 20.0,
    },
}


def test_defaults_are_pinned():
    values = json.loads(load_settings().model_dump_json())
    assert values["model"].pop("path") == str(bundled_model())
    assert values == DEFAULTS


def test_bundled_model_is_there():
    assert (bundled_model() / "config.json").is_file()


@pytest.fixture
def yaml_file(tmp_path: Path) -> Path:
    file = tmp_path / "settings.yaml"
    file.write_text("platform: gpu\ngroup:\n  count: 3\n  data_parallel: 8\n")
    return file


def test_file_gives_way_to_environment_and_that_to_flags(
    yaml_file: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MOE_SERVING_GROUP__DATA_PARALLEL", "4")
    monkeypatch.setenv("MOE_SERVING_GROUP__COUNT", "5")
    settings = load_settings(yaml_file, {"group": {"count": 7}})
    assert settings.platform is Platform.GPU  # file
    assert settings.group.data_parallel == 4  # environment over file
    assert settings.group.count == 7  # flag over both


def test_one_file_does_not_stay_for_the_next_call(yaml_file: Path):
    assert load_settings(yaml_file).group.count == 3
    assert load_settings().group.count == 1


def test_variables_that_are_no_settings_are_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MOE_SERVING_STATE_DIR", "/somewhere")
    assert load_settings() == Settings()


def test_engine_arguments_pass_through():
    settings = load_settings(flags={"engine": {"args": {"enable_prefix_caching": True}}})
    assert settings.engine.args == {"enable_prefix_caching": True}


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        pytest.param({"group": {"count": -1}}, "group.count", id="below-the-bound"),
        pytest.param({"router": {"rest_port": 70000}}, "router.rest_port", id="no-port"),
        pytest.param({"group": {"cuont": 1}}, "group.cuont", id="misspelt"),
        pytest.param({"gruop": {}}, "gruop", id="misspelt-group"),
        pytest.param({"engine": {"dtype": "int4"}}, "engine.dtype", id="not-offered"),
        pytest.param({"fleet": {"stall_timeout": 0}}, "fleet.stall_timeout", id="no-time"),
        pytest.param(
            {"engine": {"args": {"model": "x"}}}, "engine.args cannot set model", id="reserved"
        ),
        pytest.param(
            {"engine": {"args": {"tensor-parallel-size": 2}}},
            "tensor_parallel_size",
            id="reserved-spelt-as-a-flag",
        ),
        pytest.param(
            {"security": {"tls_cert_file": "c"}}, "tls_key_file", id="certificate-without-key"
        ),
        pytest.param(
            {"security": {"join_tls_client_ca_file": "c"}},
            "join_tls_cert_file",
            id="client-authority-without-tls",
        ),
        pytest.param(
            {"autoscaler": {"min_groups": 3, "max_groups": 2}}, "min_groups", id="no-room-to-scale"
        ),
        pytest.param({"autoscaler": {"band_low": 0.9}}, "band_low", id="no-band"),
        pytest.param(
            {"autoscaler": {"kubernetes": {"enabled": True}}}, "cluster", id="no-ray-cluster"
        ),
        pytest.param({"link": {"tls_key_file": "c"}}, "tls_cert_file", id="key-without-cert"),
        pytest.param(
            {"link": {"tls_key_file": "k", "tls_cert_file": "c"}},
            "tls_ca_file",
            id="client-certificate-in-plain-text",
        ),
    ],
)
def test_what_is_wrong_is_named(flags: dict, named: str):
    with pytest.raises(SettingsError) as caught:
        load_settings(flags=flags)
    assert named in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(SettingsError, match="does not exist"):
        load_settings(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("group: [", id="not-yaml"),
        pytest.param("- a\n- b\n", id="a-list"),
        pytest.param("just text", id="text"),
        pytest.param("model: {name: 2027-13-01}", id="no-such-month"),
        pytest.param("model: {name: !!timestamp x}", id="no-time"),
        pytest.param("group: " + "[" * 100_000, id="nested-without-end"),
    ],
)
def test_a_broken_file_is_a_settings_error(tmp_path: Path, text: str):
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    with pytest.raises(SettingsError):
        load_settings(file)


def test_settings_cannot_be_changed():
    settings = load_settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.group.count = 2  # type: ignore[misc]
