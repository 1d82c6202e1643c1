"""The table of needs: exact paths, prefixes, and what is not in it."""

import pytest

from serving.edge.auth.permissions import Need, Role, is_preflight, need_of_route, need_of_rpc


@pytest.mark.parametrize(
    ("path", "need"),
    [
        ("/livez", Need.NOTHING),
        ("/readyz", Need.NOTHING),
        ("/health", Need.NOTHING),
        ("/metrics", Need.METRICS),
        ("/fleet", Need.ADMIN),
        ("/version", Need.KEY),
        ("/v1/models", Need.KEY),
        ("/v1/models/some/model", Need.KEY),
        ("/openapi.json", Need.KEY),
        ("/ping", Need.NOTHING),
        ("/load", Need.METRICS),
        ("/v1/chat/completions", Need.USER),
        ("/v1/anything/new", Need.USER),
        ("/tokenize", Need.USER),
        # Not in the table, so closed; also what only looks like something open.
        ("/docs", Need.ADMIN),
        ("/", Need.ADMIN),
        ("", Need.ADMIN),
        ("/livez/", Need.ADMIN),
        ("//livez", Need.ADMIN),
        ("/LIVEZ", Need.ADMIN),
        ("/livez/../fleet", Need.ADMIN),
        ("/v1", Need.ADMIN),
    ],
)
def test_routes(path, need):
    assert need_of_route(path) is need


def test_metrics_can_be_opened_and_nothing_else_with_them():
    assert need_of_route("/metrics", open_metrics=True) is Need.NOTHING
    assert need_of_route("/fleet", open_metrics=True) is Need.ADMIN


@pytest.mark.parametrize(
    ("method", "need"),
    [
        ("/grpc.health.v1.Health/Check", Need.NOTHING),
        ("/grpc.health.v1.Health/Watch", Need.NOTHING),
        ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Need.KEY),
        ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", Need.KEY),
        ("/serving.api.v1.InferenceService/Chat", Need.USER),
        ("/serving.api.v1.InferenceService/ListModels", Need.KEY),
        ("/serving.api.v1.FleetService/GetFleet", Need.ADMIN),
        ("/serving.api.v1.FleetService/Drain", Need.ADMIN),
        ("/serving.api.v1.Other/Do", Need.ADMIN),
        ("/grpc.health.v1.HealthX/Check", Need.ADMIN),
        ("", Need.ADMIN),
    ],
)
def test_rpcs(method, need):
    assert need_of_rpc(method) is need


@pytest.mark.parametrize(
    ("method", "names", "expected"),
    [
        ("OPTIONS", {"origin", "access-control-request-method"}, True),
        ("OPTIONS", {"origin"}, False),
        ("GET", {"origin", "access-control-request-method"}, False),
    ],
)
def test_preflight(method, names, expected):
    assert is_preflight(method, frozenset(names)) is expected


def test_roles_are_what_is_documented():
    assert {role.value for role in Role} == {"user", "metrics", "explain", "admin"}
