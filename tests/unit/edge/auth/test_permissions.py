"""The permission table: exact paths, prefixes, and routes that are missing from it."""

import pytest

from serving.edge.auth.permissions import (
    Permission,
    Role,
    is_preflight,
    route_permission,
    rpc_permission,
)


@pytest.mark.parametrize(
    ("path", "permission"),
    [
        ("/livez", Permission.PUBLIC),
        ("/readyz", Permission.PUBLIC),
        ("/health", Permission.PUBLIC),
        ("/metrics", Permission.METRICS),
        ("/fleet", Permission.ADMIN),
        ("/version", Permission.ANY_KEY),
        ("/v1/models", Permission.ANY_KEY),
        ("/v1/models/some/model", Permission.ANY_KEY),
        ("/openapi.json", Permission.ANY_KEY),
        ("/ping", Permission.PUBLIC),
        ("/load", Permission.METRICS),
        ("/v1/chat/completions", Permission.USER),
        ("/v1/anything/new", Permission.USER),
        ("/tokenize", Permission.USER),
        # Missing from the table, so ADMIN; also paths that resemble public ones.
        ("/docs", Permission.ADMIN),
        ("/", Permission.ADMIN),
        ("", Permission.ADMIN),
        ("/livez/", Permission.ADMIN),
        ("//livez", Permission.ADMIN),
        ("/LIVEZ", Permission.ADMIN),
        ("/livez/../fleet", Permission.ADMIN),
        ("/v1", Permission.ADMIN),
    ],
)
def test_routes(path, permission):
    assert route_permission(path) is permission


def test_metrics_can_be_opened_and_nothing_else_with_them():
    assert route_permission("/metrics", open_metrics=True) is Permission.PUBLIC
    assert route_permission("/fleet", open_metrics=True) is Permission.ADMIN


@pytest.mark.parametrize(
    ("method", "permission"),
    [
        ("/grpc.health.v1.Health/Check", Permission.PUBLIC),
        ("/grpc.health.v1.Health/Watch", Permission.PUBLIC),
        ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Permission.ANY_KEY),
        ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", Permission.ANY_KEY),
        ("/serving.api.v1.InferenceService/Chat", Permission.USER),
        ("/serving.api.v1.InferenceService/ListModels", Permission.ANY_KEY),
        ("/serving.api.v1.FleetService/GetFleet", Permission.ADMIN),
        ("/serving.api.v1.FleetService/Drain", Permission.ADMIN),
        ("/serving.api.v1.Other/Do", Permission.ADMIN),
        ("/grpc.health.v1.HealthX/Check", Permission.ADMIN),
        ("", Permission.ADMIN),
    ],
)
def test_rpcs(method, permission):
    assert rpc_permission(method) is permission


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
