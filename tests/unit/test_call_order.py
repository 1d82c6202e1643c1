"""Calls follow the import order: no callback is assigned to another object of ours."""

import ast
from pathlib import Path

import pytest

SERVING = Path(__file__).resolve().parents[2] / "serving"
OTHERS = {
    "credentials/tls.py": {"context.sni_callback"},
    "engine/fork_server.py": {"module.get_mp_context"},
    "engine/ray/deployment.py": {"replica.add_port_to_grpc_server"},
    "vllm_adapter/app.py": {"api_router.translate_error_response"},
    "vllm_adapter/rendering.py": {"renderer._tokenize_prompt_async"},
}
"""Attributes of objects of other packages, which offer no other way."""
PATCHES = "engine/cpu_plugin/"
"""Works around vLLM's CPU bugs by replacing functions of vLLM."""


def assigned_callbacks(source):
    """Return the attributes of other objects that are assigned a function or a bound method."""
    tree = ast.parse(source)
    functions = {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }

    def is_function(value):
        if isinstance(value, ast.Name):
            return value.id in functions
        if isinstance(value, ast.Attribute):
            return ast.unparse(value.value) == "self" and value.attr in functions
        return isinstance(value, ast.Lambda)

    return {
        ast.unparse(target)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and is_function(node.value)
        for target in node.targets
        if isinstance(target, ast.Attribute) and ast.unparse(target.value) not in {"self", "cls"}
    }


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("class A:\n  def f(self): other.y = self.f", {"other.y"}),
        ("def f(): pass\nx.y = f", {"x.y"}),
        ("x.y = lambda: 1", {"x.y"}),
        ("class A:\n  def f(self): self.y = self.f\nx.y = 1\nx.y = f()", set()),
    ],
)
def test_it_finds_them(source, found):
    assert assigned_callbacks(source) == found


def test_no_callbacks_from_outside():
    found = {
        str(file.relative_to(SERVING)): names
        for file in SERVING.rglob("*.py")
        if PATCHES not in file.as_posix() and (names := assigned_callbacks(file.read_text("utf-8")))
    }
    assert found == OTHERS
