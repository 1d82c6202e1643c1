"""Writes to an object of a Helm release without becoming an owner of its fields.

Under server-side apply (Helm 4, Argo CD, Flux), a field belongs to its last writer, and a list such
as ``workerGroupSpecs`` is one field. Patching a number in it makes this process the owner of the
whole list, and the next ``helm upgrade`` fails with a conflict. A second patch therefore removes
this process from ``metadata.managedFields``. The field then has no owner and keeps its value, and
the next apply acquires it without a conflict (deploy/docs/adr/0013-numbers-in-the-rayservice.md).
"""

from collections.abc import Mapping
from typing import Any

from serving.autoscaler.actuators.kubernetes_api import FIELD_MANAGER, KubernetesApi
from serving.autoscaler.actuators.kubernetes_errors import Conflict

_TRIES = 3


async def patch_without_owning(
    api: KubernetesApi, group: str, plural: str, name: str, patch: list[dict[str, Any]]
) -> dict[str, Any]:
    """Apply a JSON patch, then release the ownership that it created.

    Raises:
        Conflict: A test of the patch failed.
        ActuatorError: As for ``KubernetesApi.patch``. The patch may have been applied; the next
            call of ``release_ownership`` then completes the operation.
    """
    changed = await api.patch(group, plural, name, patch)
    return await release_ownership(api, group, plural, changed)


async def release_ownership(
    api: KubernetesApi, group: str, plural: str, live: dict[str, Any]
) -> dict[str, Any]:
    """Remove this process from the field owners of ``live``, and return the object.

    Raises:
        ActuatorError: As for ``KubernetesApi.patch``.
    """
    name = live["metadata"]["name"]
    for _ in range(_TRIES):
        others = managed_fields_of_others(live)
        if others is None:
            return live
        patch = [
            {
                "op": "add",
                "path": "/metadata/resourceVersion",
                "value": live["metadata"]["resourceVersion"],
            },
            {"op": "replace", "path": "/metadata/managedFields", "value": others},
        ]
        try:
            return await api.patch(group, plural, name, patch)
        except Conflict:
            live = await api.get(group, plural, name)
    return live  # changed during every attempt; retried after the next read


def managed_fields_of_others(live: Mapping[str, Any]) -> list[Any] | None:
    """Return the managed fields without this process's entry; None if there is nothing to release.

    Only objects with an applying manager need a release: managers that update (Helm 3, KubeRay) do
    not get conflicts. This process does not write status.
    """
    entries = list(live["metadata"].get("managedFields") or ())
    others = [entry for entry in entries if not _ours(entry)]
    applied = any(entry.get("operation") == "Apply" for entry in others)
    return others if applied and len(others) < len(entries) else None


def _ours(entry: Mapping[str, Any]) -> bool:
    return (
        entry.get("manager") == FIELD_MANAGER
        and entry.get("operation") == "Update"
        and not entry.get("subresource")
    )
