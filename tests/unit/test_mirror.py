"""tests/unit mirrors the code: a module's tests are in the expected file."""

from itertools import chain
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "tests" / "unit"

TOPICS = {
    "admission/test_documentation": "what deploy/docs say of quotas, against the settings",
    "admission/test_simulation": "fairness and bounds of the whole controller under random load",
    "batch/test_policy": "the policy of batch.scheduler on a simulated group, in virtual time",
    "batch/test_storage": "files, batches, lines, validation and results in one database",
    "cli/test_tls_server_name": "one option of every client command",
    "console/test_feeds": "all feeds, and the timeline",
    "edge/test_errors": "the error table as REST and gRPC send it",
    "edge/test_http_floods": "the bounds of REST's protocol against hostile clients",
    "edge/test_value_bounds_of_messages": "edge.value_bounds for gRPC",
    "engine/test_engine_contract": "engine.base, for the fake engine and vLLM",
    "h2grpc/test_floods": "the bounds of the whole server against hostile clients",
    "h2grpc/test_oracle": "the whole server beside grpc.aio",
    "h2grpc/test_oracle_context": "the handlers' context beside grpc.aio",
    "h2grpc/test_oracle_endings": "the ends of calls beside grpc.aio",
    "h2grpc/test_oracle_table": "that the comparison with grpc.aio is complete",
    "h2grpc/test_rfc9113": "the whole server against the requirements of RFC 9113",
    "h2grpc/test_tls": "the whole server over TLS",
    "loadtest/bench/test_main": "the bench's command line",
    "loadtest/simulation/test_command": "the simulation's command line",
    "models/test_pocket_r1": "the bundled model in deploy/models",
    "settings/test_contract": "names and defaults of all settings",
    "settings/test_texts": "texts and units of all settings",
    "support/test_suite": "tests.suite",
    "test_call_order": "that no callback is assigned to another object, in all packages",
    "test_dependencies": "pyproject.toml",
    "test_images": "deploy/images",
    "test_mirror": "tests/unit",
    "test_packaging": "the wheel",
    "test_patience": "the clients in all tests",
    "test_setup_script": ".ci/setup",
    "vllm_adapter/test_disconnects": "the ends of handlers in routes",
    "vllm_adapter/test_contract": "everything in the package that replaces a part of vLLM",
}
"""Test files that do not belong to a single module, and their subject."""

ELSEWHERE = {
    "over a real API server's protocol in tests/integration/autoscaler": (
        "autoscaler/actuators/",
        "autoscaler/app",
        "autoscaler/pool_app",
        "autoscaler/prometheus",
        "autoscaler/signals",
    ),
    "over real connections in tests/integration/edge": (
        "edge/adapter_pages",
        "edge/auth/grpc",
        "edge/grpc/server",
        "edge/rest/",
        "fleet/adapter_operations",
        "router/models",
        "router/optional_parts",
        "router/process",
    ),
    "with both databases, and over real connections, in tests/integration/ledger": (
        "edge/usage_pages",
        "ledger/budget_store",
        "ledger/database",
        "ledger/inserts",
        "ledger/migrations/",
        "ledger/query",
        "ledger/schema",
        "ledger/sums",
        "ledger/view",
    ),
    "together by tests/unit/console/test_feeds": (
        "console/experts_feed",
        "console/fleet_feed",
        "console/requests_feed",
        "console/timeline",
    ),
    "over real connections in tests/integration/console": ("console/routes", "console/stream"),
    "together by tests/unit/batch/test_storage and test_runner": (
        "batch/answers",
        "batch/batches",
        "batch/database",
        "batch/files",
        "batch/lines",
        "batch/objects",
        "batch/owners",
        "batch/records",
        "batch/result_lines",
        "batch/results",
        "batch/schema",
        "batch/store",
        "batch/validation",
        "sql",
    ),
    "over real connections in tests/integration/batch": (
        "batch/s3",
        "batch/service",
        "edge/batch_json",
        "edge/batch_pages",
    ),
    "over real connections in tests/integration/link": (
        "engine/router_link/",
        "fleet/join_server",
        "link/protocol",
        "requests/",
    ),
    "by the tests of the commands that use it": (
        "__main__",
        "cli/",
        "client/",
        "flags/",
    ),
    "by the tests of the package's policy as a whole": (
        "admission/",
        "autoscaler/decision",
        "routing/",
        "fleet/rank_handle",
    ),
    "by test_errors and test_requests, which compare whole messages": ("edge/grpc/",),
    "by the contract of all engines, and with real ones in tests/integration/engine": (
        "engine/base",
        "engine/core/",
        "engine/fake/",
        "engine/fork_imports",
        "engine/generating",
        "engine/local_rank",
        "engine/step_recorder",
        "engine/vllm_engine",
        "engine/worker_extension",
    ),
    "together with engine/adapters by its tests": (
        "engine/adapter_copies",
        "engine/adapter_request",
    ),
    "by test_cpu_plugin, patch by patch": ("engine/cpu_plugin/",),
    "by test_run, with several peers": ("engine/fabric/",),
    "by tests/unit/engine/ray and on real Ray in tests/e2e": ("engine/ray/",),
    "by test_keys": ("edge/auth/key_file",),
    "byte by byte by test_connection and test_call": ("h2grpc/",),
    "by test_contract of the package": ("settings/", "vllm_adapter/"),
    "by the published figures of test_anchors, and as parts of test_group and test_search": (
        "planner/accelerators",
        "planner/all_to_all",
        "planner/bisection",
        "planner/constants",
        "planner/cost",
        "planner/plans",
        "planner/refusals",
        "planner/shapes",
    ),
    "as an argument of all that keep time": ("clock",),
    "by test_metrics, all declarations together": (
        "telemetry/autoscaler_metrics",
        "telemetry/fleet_metrics",
    ),
}
"""How modules without a separate test file are tested; ``x/`` stands for the rest of x."""


def _names(folder: Path, pattern: str = "*.py") -> set[str]:
    """Return the modules and packages under a folder, without their suffix."""
    files = list(folder.rglob(pattern))
    found = {file.relative_to(folder).as_posix().removesuffix(".py") for file in files}
    found |= {file.parent.relative_to(folder).as_posix() for file in files}
    return {name for name in found if name != "." and "__init__" not in name and "/v1" not in name}


def _code() -> set[str]:
    inside = {f"loadtest/{name}" for name in _names(ROOT / "loadtest")}
    for helper in ("clients", "rig", "support"):
        inside |= {f"{helper}/{name}" for name in _names(ROOT / "tests" / helper)}
    return _names(ROOT / "serving") | inside


def _about(test: str) -> str:
    """Return the module or package that a test file is named after."""
    folder, _, name = test.rpartition("/")
    return f"{folder}/{name.removeprefix('test_')}".removeprefix("/")


TESTS = {name for name in _names(UNIT, "test_*.py") if (UNIT / f"{name}.py").is_file()}


def test_every_test_file_is_named_after_what_it_tests() -> None:
    strays = {test for test in TESTS if _about(test) not in _code()}
    assert strays == set(TOPICS)


def test_every_module_has_a_test_file_or_a_reason() -> None:
    tested = {_about(test) for test in TESTS}
    reasons = tuple(chain(*ELSEWHERE.values()))
    modules = {name for name in _names(ROOT / "serving") if (ROOT / f"serving/{name}.py").is_file()}
    without = {name for name in modules if name not in tested}
    unexplained = {name for name in without if not any(_covers(reason, name) for reason in reasons)}
    assert unexplained == set()
    idle = {reason for reason in reasons if not any(_covers(reason, name) for name in without)}
    assert idle == set(), "these have test files now"


def _covers(reason: str, name: str) -> bool:
    return name.startswith(reason) if reason.endswith("/") else name == reason
