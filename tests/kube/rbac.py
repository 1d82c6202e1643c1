"""Authorization by Roles, ClusterRoles and their bindings, as in "Using RBAC Authorization".

The error message is the recorded one, with user, verb, resource, group and namespace.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.kube.errors import ApiError

ADMIN_TOKEN = "admin"
"""Bearer token of a user in ``system:masters``, which has all permissions."""


@dataclass(frozen=True)
class User:
    """The user of a request."""

    name: str
    groups: tuple[str, ...] = ()


ADMIN = User("kubernetes-admin", ("system:masters", "system:authenticated"))
ANONYMOUS = User("system:anonymous", ("system:unauthenticated",))


def service_account_token(namespace: str, name: str) -> str:
    """Return the bearer token of a service account, valid while the account exists."""
    return f"sa:{namespace}:{name}"


def service_account(namespace: str, name: str) -> User:
    groups = (
        "system:serviceaccounts",
        f"system:serviceaccounts:{namespace}",
        "system:authenticated",
    )
    return User(f"system:serviceaccount:{namespace}:{name}", groups)


def user_of(token: str | None, store: Any) -> User | None:
    """Return the user of a bearer token; None (401) if it is invalid."""
    if token is None:
        return ANONYMOUS
    if token == ADMIN_TOKEN:
        return ADMIN
    word, _, rest = token.partition(":")
    namespace, _, name = rest.partition(":")
    if word == "sa" and store.peek("serviceaccounts", name, namespace) is not None:
        return service_account(namespace, name)
    return None


def impersonated(store: Any, user: User, name: str) -> User:
    """Return the user that ``user`` impersonates (``Impersonate-User``).

    Raises:
        ApiError: 403; ``user`` may not impersonate it.
    """
    parts = name.split(":")
    account = parts[:2] == ["system", "serviceaccount"] and len(parts) == 4
    plural = "serviceaccounts" if account else "users"
    space = parts[2] if account else ""
    if not allowed(store, user, "impersonate", "", plural, space, parts[-1]):
        message = (
            f'{plural} "{parts[-1]}" is forbidden: User "{user.name}" cannot impersonate resource '
            f'"{plural}" in API group ""'
        )
        raise ApiError(403, message)
    return service_account(*parts[2:]) if account else User(name, ("system:authenticated",))


def allowed(
    store: Any, user: User, verb: str, group: str, resource: str, namespace: str, name: str
) -> bool:
    """Return whether ``user`` is allowed to; ``resource`` may have a subresource (``pods/log``)."""
    if "system:masters" in user.groups:
        return True
    return any(
        _covers(rule, verb, group, resource, name) for rule in _rules(store, user, namespace)
    )


def _rules(store: Any, user: User, namespace: str) -> Iterator[dict[str, Any]]:
    bindings = [(item, "") for item in store.peek_all("clusterrolebindings")]
    if namespace:
        bindings += [(item, namespace) for item in store.peek_all("rolebindings", namespace)]
    for binding, where in bindings:
        if not any(_is(subject, user, where) for subject in binding.get("subjects") or ()):
            continue
        reference = binding["roleRef"]
        plural, space = ("roles", where) if reference["kind"] == "Role" else ("clusterroles", "")
        role = store.peek(plural, reference["name"], space)
        yield from (role or {}).get("rules") or ()


def _is(subject: dict[str, Any], user: User, namespace: str) -> bool:
    if subject["kind"] == "Group":
        return subject["name"] in user.groups
    if subject["kind"] == "ServiceAccount":
        space = subject.get("namespace") or namespace
        return user.name == f"system:serviceaccount:{space}:{subject['name']}"
    return user.name == subject["name"]


def _covers(rule: dict[str, Any], verb: str, group: str, resource: str, name: str) -> bool:
    def has(key: str, *wanted: str) -> bool:
        return bool({"*", *wanted} & {*(rule.get(key) or ())})

    subresource = resource.partition("/")[2]
    anywhere = (f"*/{subresource}",) if subresource else ()
    names = rule.get("resourceNames") or ()
    return (
        has("verbs", verb)
        and has("apiGroups", group)
        and has("resources", resource, *anywhere)
        # The name is unknown for creates and lists.
        and (not names or name in names)
    )
