"""Code of vLLM, FastAPI, Starlette and uvicorn that the router depends on.

``contract.py`` lists every method that is overridden, every function that is rebuilt or replaced,
every class that is swapped, every route, middleware and exception handler that is removed or
replaced. If a new version of these packages changes one of them, a test fails and names it; a
change of the router that is not listed also fails.
"""

import ast
import hashlib
import importlib
import inspect
import re
import textwrap
from argparse import Namespace
from functools import cache
from pathlib import Path
from types import CodeType

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.responses import StreamingResponse
from vllm.entrypoints.anthropic import api_router
from vllm.entrypoints.launchers.app import build_app

from serving.engine.arguments import router_args, router_vllm_config
from serving.settings import Settings
from serving.vllm_adapter import answer_parser, app, routes
from serving.vllm_adapter.routes import EventStream, bypass_middleware, fail_fast
from tests.unit.vllm_adapter import contract

ROOT = Path(app.__file__).resolve().parents[2]
FOREIGN = ("vllm", "fastapi", "starlette", "uvicorn")
EXCLUDED = "serving/engine/cpu_plugin/"
"""Excluded: it patches vLLM only on CPUs, each time after a probe; its tests are its contract."""


def trees():
    """Yield path and syntax tree of the modules that use vLLM or the packages of its server."""
    for path in sorted((ROOT / "serving").rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if name.startswith(EXCLUDED):
            continue
        text = path.read_text("utf-8")
        imports = (f"{word} {package}" for word in ("from", "import") for package in FOREIGN)
        if name.startswith("serving/vllm_adapter/") or any(each in text for each in imports):
            yield name, ast.parse(text)


def is_foreign(cls):
    return cls.__module__.split(".")[0] in FOREIGN


def is_code(value):
    return callable(value) or isinstance(value, property | classmethod | staticmethod)


def named(owner, name):
    return f"{owner.__module__}:{owner.__qualname__}.{name}"


@cache
def overridden():
    """Return the overridden names, with the classes that override them."""
    found = {}
    for path, tree in trees():
        module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
        for node in ast.walk(tree):
            cls = vars(module).get(node.name) if isinstance(node, ast.ClassDef) else None
            if not inspect.isclass(cls) or cls.__module__ != module.__name__:
                continue
            bases = [base for base in cls.__mro__ if is_foreign(base)]
            for ours in (base for base in cls.__mro__ if base.__module__.startswith("serving.")):
                for name in vars(ours):
                    if name in contract.OF_EVERY_CLASS:
                        continue
                    for base in bases:
                        if name in vars(base) and is_code(vars(base)[name]):
                            found.setdefault(named(base, name), set()).add(f"{path} {cls.__name__}")
                            break
    return found


@cache
def code_of(module):
    """Return the code of a module's file and of everything that it defines, by qualified name."""
    path = importlib.import_module(module).__file__
    found, left = {}, [compile(Path(path).read_bytes(), path, "exec")]
    while left:
        code = left.pop()
        found[code.co_qualname] = code
        left += (each for each in code.co_consts if isinstance(each, CodeType))
    return found


def source_of(name):
    """Return the source of what a name like ``package.module:Class.method`` stands for.

    It is read from the module's file, because a router of an earlier test can have replaced the
    object in memory.

    Raises:
        ImportError: the module does not exist.
        KeyError: the module does not define the name.
    """
    module, _, path = name.partition(":")
    return textwrap.dedent(inspect.getsource(code_of(module)[path]))


def fingerprint(name):
    return hashlib.sha256(source_of(name).encode()).hexdigest()[:10]


def changed(name, expected, uses):
    """Return a message about changed code, or None."""
    try:
        actual = fingerprint(name)
    except (ImportError, KeyError) as error:
        return f"{name} does not exist any more ({error}); {uses}"
    if actual == expected:
        return None
    return (
        f"{name} has changed; {uses}. Compare both versions, adapt the router, and set the "
        f"fingerprint in {contract.__file__} to {actual!r}"
    )


def test_every_override_is_listed():
    assert sorted(overridden()) == sorted(contract.OVERRIDDEN)


@pytest.mark.parametrize("name", contract.OVERRIDDEN)
def test_what_is_overridden_is_what_it_was(name):
    uses = "overridden by " + ", ".join(sorted(overridden().get(name, {"nothing"})))
    assert changed(name, contract.OVERRIDDEN[name], uses) is None


@pytest.mark.parametrize("name", contract.REPLACED)
def test_what_is_replaced_or_rebuilt_is_what_it_was(name):
    expected, uses = contract.REPLACED[name]
    assert changed(name, expected, uses) is None


@pytest.mark.parametrize(
    ("name", "expected", "said"),
    [
        pytest.param("vllm.no_module:f", "", "does not exist any more", id="module-gone"),
        pytest.param("vllm.exceptions:gone", "", "does not exist any more", id="name-gone"),
        pytest.param("vllm.exceptions:VLLMError", "0" * 10, "has changed; why", id="changed"),
    ],
)
def test_a_change_is_described(name, expected, said):
    assert said in changed(name, expected, "why")


def test_what_a_router_replaced_in_memory_is_read_from_its_file(monkeypatch):
    name = "vllm.entrypoints.anthropic.api_router:translate_error_response"
    monkeypatch.setattr(api_router, "translate_error_response", changed)
    assert changed(name, contract.REPLACED[name][0], "") is None


# -- sites ----------------------------------------------------------------------------------------


def surgery(node):
    """Return the change that a statement makes to an object of another package, or None."""
    targets = node.targets if isinstance(node, ast.Assign) else []
    for target in targets:
        if isinstance(target, ast.Subscript) and isinstance(target.value, ast.Attribute):
            if target.value.attr == "routes":
                return "routes"
        elif isinstance(target, ast.Attribute) and target.attr in contract.ASSIGNED:
            return target.attr
    if isinstance(node, ast.Call):
        called = ast.unparse(node.func)
        if called in contract.CALLED:
            return called
    return None


def test_every_site_is_listed():
    """Assignments to attributes of vLLM's and FastAPI's objects, and calls that change them."""
    found = {}
    for path, tree in trees():
        for node in ast.walk(tree):
            if (what := surgery(node)) is not None:
                found.setdefault(path, set()).add(what)
    assert found == contract.SITES


# -- vLLM's app -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vllm_app():
    settings = Settings(engine={"kind": "fake"})
    args = Namespace(**{**vars(router_args(settings)), **app._FIXED_ARGS})
    return build_app(args, app.TASKS, router_vllm_config(settings).model_config)


def full_name(value):
    return f"{value.__module__}.{value.__qualname__}"


def test_routes(vllm_app):
    """A new route is either kept or removed on purpose."""
    mounted = {routes._path(route) for route in vllm_app.router.routes}
    assert mounted == routes.KEPT_ROUTES | contract.REMOVED_ROUTES


def test_middleware_that_is_removed(vllm_app):
    assert [full_name(each.cls) for each in vllm_app.user_middleware] == contract.MIDDLEWARE


def test_exception_handlers(vllm_app):
    found = {
        full_name(error): full_name(handler)
        for error, handler in vllm_app.exception_handlers.items()
    }
    assert found == contract.EXCEPTION_HANDLERS


def test_app_without_a_route_is_refused(vllm_app, monkeypatch):
    monkeypatch.setattr(routes, "KEPT_ROUTES", routes.KEPT_ROUTES | {"/v1/future"})
    copy = FastAPI()
    copy.router.routes[:] = vllm_app.router.routes
    with pytest.raises(RuntimeError, match=r"no /v1/future; this vLLM version is not supported"):
        routes.remove_routes(copy)


def test_streamed_routes_have_endpoints_that_can_be_replaced(vllm_app):
    by_path = {route.path: route for route in vllm_app.routes if isinstance(route, APIRoute)}
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses"):
        assert by_path[path].dependant.call is by_path[path].endpoint


def test_vllms_modules_log_under_their_names():
    for module in app._LOGGING_MODULES:
        assert module.logger.name == module.__name__


# -- swapped classes ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", app._HANDLERS)
def test_handlers_have_the_classes_that_are_extended(name):
    """``__class__`` can be set, and vLLM's app state is built from exactly this class."""
    ours = app._HANDLERS[name]
    (base,) = (each for each in ours.__bases__ if is_foreign(each))
    made = object.__new__(base)
    made.__class__ = ours
    assert isinstance(made, ours)
    source = inspect.getsource(importlib.import_module(contract.BUILT_IN[name]))
    assert f"state.{name} = " in source, f"vLLM does not set state.{name} any more"
    assert f"{base.__name__}(" in source, f"vLLM builds state.{name} from another class"


@pytest.mark.parametrize("name", answer_parser._HOLDERS)
def test_parser_classes_are_where_they_are_replaced(name):
    attribute = answer_parser._HOLDERS[name]
    (base,) = (each for each in app._HANDLERS[name].__bases__ if is_foreign(each))
    sources = "".join(inspect.getsource(each) for each in base.__mro__ if is_foreign(each))
    assigned = re.search(rf"self\.{attribute}\b[^=\n]* = ", sources)
    assert assigned, f"{base.__name__} keeps its parser class elsewhere"
    assert f"self.{attribute}(" in sources, f"{base.__name__} does not call self.{attribute}"


@pytest.mark.parametrize(("base", "ours"), contract.SWAPPED)
def test_answers_can_change_their_class(base, ours):
    made = base.__new__(base)
    made.__class__ = ours
    assert isinstance(made, ours)


# -- FastAPI --------------------------------------------------------------------------------------


async def test_fastapi_calls_the_endpoint_that_was_replaced():
    fast = FastAPI()

    @fast.post("/stream")
    async def stream():
        return StreamingResponse(iter(["data: x\n\n"]))

    bypass_middleware(fast, frozenset({"/stream"}))
    response = await fast.routes[-1].dependant.call()
    assert type(response) is EventStream


def test_fastapi_validates_with_the_validator_that_was_replaced():
    fast = FastAPI()

    @fast.post("/items")
    async def items(given: list[int]):
        return given

    fail_fast(fast)
    _, errors = fast.routes[-1].body_field.validate(["a", "b"], {}, loc=("body",))
    assert len(errors) == 1
