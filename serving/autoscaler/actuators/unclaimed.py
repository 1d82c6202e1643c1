"""Writes into an object that a release owns without becoming an owner of it.

Under server-side apply (Helm 4, Argo CD, Flux) a field belongs to whoever wrote it last, and a list
such as ``workerGroupSpecs`` is one field. A number that is patched into it would make this process
the owner of the whole list, and the next ``helm upgrade`` would fail with a conflict. So the patch
is followed by a second one that takes this process out of ``metadata.managedFields``: the field is
nobody's, keeps its value, and whoever applies next takes it without a conflict
(deploy/docs/adr/0013-numbers-in-the-rayservice.md).
"""

from collections.abc import Mapping
from typing import Any

from serving.autoscaler.actuators.kubernetes_api import FIELD_MANAGER, KubernetesApi
from serving.autoscaler.actuators.kubernetes_errors import Conflict

_TRIES = 3


async def patch_unclaimed(
    api: KubernetesApi, group: str, plural: str, name: str, patch: list[dict[str, Any]]
) -> dict[str, Any]:
    """Apply a JSON patch, then give up what it made this process the owner of.

    Raises:
        Conflict: a test of the patch failed.
        ActuatorError: as for ``KubernetesApi.patch``; the patch may have been applied. ``disown``
            makes up for it at the next reading.
    """
    changed = await api.patch(group, plural, name, patch)
    return await disown(api, group, plural, changed)


async def disown(
    api: KubernetesApi, group: str, plural: str, live: dict[str, Any]
) -> dict[str, Any]:
    """Take this process out of the owners of ``live``'s fields where it is one, and return it.

    Raises:
        ActuatorError: as for ``KubernetesApi.patch``.
    """
    name = live["metadata"]["name"]
    for _ in range(_TRIES):
        others = owners_without_us(live)
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
    return live  # changed all the time; seen again at the next reading


def owners_without_us(live: Mapping[str, Any]) -> list[Any] | None:
    """Return the managed fields without ours; None where there is nothing to give up.

    Only an object that is applied by somebody needs it: managers that update (Helm 3, KubeRay)
    meet no conflicts. A status that is ours would be another matter: there is none.
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
