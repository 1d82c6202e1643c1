"""SelfSubjectAccessReviews, and token requests of service accounts.

Follows the API reference of authorization.k8s.io/v1 and TokenRequest; every authenticated user may
create the former (ClusterRole ``system:basic-user``).
"""

from typing import Any

from tests.kube import rbac
from tests.kube.errors import forbidden, not_found
from tests.kube.faults import Seen

Item = dict[str, Any]
_REVIEW = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


def answer(store: Any, seen: Seen, user: rbac.User) -> Item | None:
    """Return the response to a POST; None for any other path.

    Raises:
        ApiError: 403 or 404.
    """
    if seen.method != "POST":
        return None
    if seen.path == _REVIEW:
        body = seen.parsed()
        return body | {"status": {"allowed": _allowed(store, user, body["spec"])}}
    match seen.path.strip("/").split("/"):
        case ["api", "v1", "namespaces", space, "serviceaccounts", name, "token"]:
            return _token(store, user, space, name)
    return None


def _allowed(store: Any, user: rbac.User, spec: Item) -> bool:
    wanted = spec.get("resourceAttributes")
    if wanted is None:
        return "system:masters" in user.groups
    resource = wanted.get("resource", "")
    if below := wanted.get("subresource"):
        resource = f"{resource}/{below}"
    return rbac.allowed(
        store, user, wanted.get("verb", ""), wanted.get("group", ""), resource,
        wanted.get("namespace", ""), wanted.get("name", ""),
    )  # fmt: skip


def _token(store: Any, user: rbac.User, space: str, name: str) -> Item:
    kind = store.kinds.named("serviceaccounts")
    if not rbac.allowed(store, user, "create", "", "serviceaccounts/token", space, name):
        raise forbidden(user.name, "create", kind, space, name, "token")
    if store.peek("serviceaccounts", name, space) is None:
        raise not_found(kind, name)
    return {
        "kind": "TokenRequest",
        "apiVersion": "authentication.k8s.io/v1",
        "metadata": {"name": name, "namespace": space},
        "status": {"token": rbac.service_account_token(space, name)},
    }
