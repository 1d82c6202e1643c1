"""Evictions (``pods/eviction``), subject to disruption budgets.

Recorded from Kubernetes 1.36.2: 429 with the budget as cause when it allows none, else 201, and the
pod gets the condition DisruptionTarget and is deleted with its grace period.
"""

from typing import Any

from tests.kube.api import Api, Options, Place
from tests.kube.errors import ApiError
from tests.kube.store import now

Item = dict[str, Any]


def evict(api: Api, place: Place, body: Item, options: Options) -> None:
    """Evict a pod unless a budget forbids it.

    Raises:
        ApiError: 404 or 429.
    """
    store = api.store
    with store.lock:
        pod = store.get(place.kind, place.name, place.namespace)
        labels = (pod["metadata"].get("labels") or {}).items()
        for budget in store.peek_all("poddisruptionbudgets", place.namespace):
            selector = budget["spec"].get("selector") or {}
            if (selector.get("matchLabels") or {}).items() <= labels:
                _use(api, budget)
        condition = {
            "type": "DisruptionTarget",
            "status": "True",
            "lastTransitionTime": now(),
            "reason": "EvictionByEvictionAPI",
            "message": "Eviction API: evicting",
        }
        conditions = [*((pod.get("status") or {}).get("conditions") or ()), condition]
        changed = {**pod, "status": (pod.get("status") or {}) | {"conditions": conditions}}
        api.update(place, changed, Options(options.manager, subresource="status"))
        api.delete(place, body.get("deleteOptions"), options)


def _use(api: Api, budget: Item) -> None:
    """Use one of a budget's allowed disruptions."""
    status, name = budget.get("status") or {}, budget["metadata"]["name"]
    if not status.get("disruptionsAllowed"):
        text = (
            f"The disruption budget {name} needs {status.get('desiredHealthy', 0)} healthy pods "
            f"and has {status.get('currentHealthy', 0)} currently"
        )
        message = "Cannot evict pod as it would violate the pod's disruption budget."
        causes = [{"reason": "DisruptionBudget", "message": text}]
        raise ApiError(429, message, details={"causes": causes})
    left = status | {"disruptionsAllowed": status["disruptionsAllowed"] - 1}
    place = Place(api.store.kinds.of(budget), name, budget["metadata"]["namespace"])
    api.update(place, {**budget, "status": left}, Options("eviction", subresource="status"))
