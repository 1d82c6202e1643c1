"""The storage of the API server: objects, revisions, and the log that watches read.

Follows "Kubernetes API Concepts": one revision counter over all kinds; resourceVersion is the
revision of an object's last change; a compaction discards the changes before it. Deletion
follows "Finalizers" and "Garbage Collection": with finalizers or a grace period, an object gets
a deletionTimestamp and stays; without existing owners, it is deleted. Unlike in a cluster,
dependents are deleted in the same call as their owner.
"""

import datetime as dt
import random
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.kube.copies import copied
from tests.kube.errors import not_found
from tests.kube.kinds import Kind, Kinds

Item = dict[str, Any]
FOREGROUND = "foregroundDeletion"
_SUFFIX = "bcdfghjklmnpqrstvwxz2456789"


@dataclass(frozen=True)
class Event:
    """A change; ``before`` is the previous object, for watches with selectors."""

    revision: int
    kind: Kind
    what: str
    item: Item
    before: Item | None


class Store:
    """All objects of one server. Thread-safe; hold ``lock`` for atomic sequences."""

    def __init__(self, kinds: Kinds | None = None):
        self.kinds = kinds or Kinds()
        self.lock = threading.RLock()
        self.revision = 100
        self.oldest = 0
        """Oldest revision at which a watch may start."""
        self.events: list[Event] = []
        """All changes and requested bookmarks; only grows."""
        self.listeners: list[Callable[[], None]] = []
        """Called after each change, in the thread that made it, with the lock held."""
        self._items: dict[Kind, dict[tuple[str, str], Item]] = {}
        self._random = random.Random(20)

    # -- reading ----------------------------------------------------------------------------------

    def find(self, kind: Kind, name: str, namespace: str = "") -> Item | None:
        """Return the stored object itself, which must not be changed, or None."""
        return self._items.get(kind, {}).get((namespace if kind.namespaced else "", name))

    def get(self, kind: Kind, name: str, namespace: str = "") -> Item:
        """Return a copy.

        Raises:
            ApiError: 404.
        """
        with self.lock:
            found = self.find(kind, name, namespace)
            if found is None:
                raise not_found(kind, name)
            return copied(found)

    def all(
        self, kind: Kind, namespace: str = "", where: Callable[[Item], bool] | None = None
    ) -> list[Item]:
        """Return copies in the order of namespace and name; by default, of all namespaces."""
        return [copied(item) for item in self.view(kind, namespace, where)]

    def view(
        self, kind: Kind, namespace: str = "", where: Callable[[Item], bool] | None = None
    ) -> list[Item]:
        """Return the same objects uncopied; they must not be changed."""
        with self.lock:
            items = self._items.get(kind, {})
            return [
                items[key]
                for key in sorted(items)
                if (not namespace or key[0] == namespace) and (where is None or where(items[key]))
            ]

    def peek(self, plural: str, name: str, namespace: str = "") -> Item | None:
        """Return a copy of an object by its plural, or None."""
        with self.lock:
            return copied(self.find(self.kinds.named(plural), name, namespace))

    def peek_all(
        self, plural: str, namespace: str = "", where: Callable[[Item], bool] | None = None
    ) -> list[Item]:
        return self.all(self.kinds.named(plural), namespace, where)

    def everything(self) -> list[Item]:
        """Return a copy of each object of every kind."""
        with self.lock:
            return [item for kind in self.kinds for item in self.all(kind)]

    # -- changing ---------------------------------------------------------------------------------

    def born(self, item: Item) -> None:
        """Set the generated fields of a new object: name, uid, creationTimestamp."""
        metadata = item["metadata"]
        if not metadata.get("name") and metadata.get("generateName"):
            metadata["name"] = metadata["generateName"] + self.suffix()
        metadata["uid"] = str(uuid.UUID(int=self._random.getrandbits(128), version=4))
        metadata["creationTimestamp"] = now()
        metadata["generation"] = 1

    def suffix(self) -> str:
        """Return the five-character suffix of a generated name."""
        return "".join(self._random.choices(_SUFFIX, k=5))

    def put(self, kind: Kind, item: Item) -> Item:
        """Store a new or changed object under the next revision; return a copy of it.

        A changed object that is being deleted and has no finalizers left is removed.
        """
        with self.lock:
            key = self._key(kind, item)
            before = self._items.setdefault(kind, {}).get(key)
            if before is not None and self._may_go(item):
                self.remove(kind, item)
                return copied(item)
            self._stamp(item)
            kept = self._items[kind][key] = copied(item)
            self._happened(kind, "MODIFIED" if before else "ADDED", kept, before)
            if before is None and self._ownerless(kind, item):
                self.delete(kind, item["metadata"]["name"], key[0])
            return copied(item)

    def delete(
        self, kind: Kind, name: str, namespace: str = "", policy: str = "Background"
    ) -> Item:
        """Delete an object, or mark it as deleted if it has finalizers; return its last state.

        Args:
            kind: its kind.
            name: its name.
            namespace: its namespace.
            policy: "Background", "Foreground" (blocking dependents first) or "Orphan".

        Raises:
            ApiError: 404.
        """
        with self.lock:
            item = self.get(kind, name, namespace)
            metadata = item["metadata"]
            uid = metadata["uid"]
            if policy == "Orphan":
                self._orphan(uid)
            if policy == "Foreground" and self._dependents(uid):
                finalizers = metadata.setdefault("finalizers", [])
                if FOREGROUND not in finalizers:
                    finalizers.append(FOREGROUND)
            if metadata.get("finalizers"):
                if "deletionTimestamp" not in metadata:
                    self._mark(kind, item, 0)
                if policy == "Foreground":
                    for other, dependent in self._dependents(uid):
                        self._delete_dependent(other, dependent, policy)
                    self._finish_foreground(uid)
                return item
            self.remove(kind, item)
            return item

    def mark(self, kind: Kind, name: str, namespace: str, grace: int) -> Item:
        """Set deletionTimestamp and the grace period; the object is removed later."""
        with self.lock:
            item = self.get(kind, name, namespace)
            return self._mark(kind, item, grace)

    def remove(self, kind: Kind, item: Item) -> None:
        """Remove an object and the dependents that have no owner left."""
        with self.lock:
            before = self._items[kind].pop(self._key(kind, item))
            self._stamp(item)
            self._happened(kind, "DELETED", copied(item), before)
            uid = item["metadata"]["uid"]
            for other, dependent in self._dependents(uid):
                if self._ownerless(other, dependent):
                    self._delete_dependent(other, dependent, "Background")
            for reference in item["metadata"].get("ownerReferences") or ():
                self._finish_foreground(reference["uid"])
            if kind.plural == "namespaces":
                self._empty(item["metadata"]["name"])

    def compact(self) -> None:
        """Discard all changes until now, as etcd's compaction does; open watches continue."""
        with self.lock:
            self.oldest = self.revision

    def bookmark(self, plural: str) -> int:
        """Advance the revision, send a bookmark to all watches of the kind; return the revision."""
        with self.lock:
            self.revision += 1
            self.events.append(Event(self.revision, self.kinds.named(plural), "BOOKMARK", {}, None))
            self._tell()
            return self.revision

    # -- inside -----------------------------------------------------------------------------------

    @staticmethod
    def _key(kind: Kind, item: Item) -> tuple[str, str]:
        metadata = item["metadata"]
        return (metadata.get("namespace", "") if kind.namespaced else "", metadata["name"])

    def _stamp(self, item: Item) -> None:
        self.revision += 1
        item["metadata"]["resourceVersion"] = str(self.revision)

    def _happened(self, kind: Kind, what: str, item: Item, before: Item | None) -> None:
        event = Event(self.revision, kind, what, item, before)
        self.events.append(event)
        self._tell()

    def _tell(self) -> None:
        for listener in [*self.listeners]:
            listener()

    def _mark(self, kind: Kind, item: Item, grace: int) -> Item:
        metadata = item["metadata"]
        metadata["deletionTimestamp"] = now(grace)
        metadata["deletionGracePeriodSeconds"] = grace
        # The change of the deletionTimestamp counts as one of the specification.
        if kind.counted:
            metadata["generation"] = metadata.get("generation", 0) + 1
        return self.put(kind, item)

    @staticmethod
    def _may_go(item: Item) -> bool:
        metadata = item["metadata"]
        return (
            "deletionTimestamp" in metadata
            and not metadata.get("finalizers")
            and not metadata.get("deletionGracePeriodSeconds")
        )

    def _dependents(self, uid: str) -> list[tuple[Kind, Item]]:
        return [
            (kind, copied(item))
            for kind, items in self._items.items()
            for item in items.values()
            if owned_by(item, uid)
        ]

    def _delete_dependent(self, kind: Kind, item: Item, policy: str) -> None:
        metadata = item["metadata"]
        namespace, name = metadata.get("namespace", ""), metadata["name"]
        if self.find(kind, name, namespace) is None or "deletionTimestamp" in metadata:
            return
        if (grace := grace_of(kind, item)) > 0:
            self.mark(kind, name, namespace, grace)
        else:
            self.delete(kind, name, namespace, policy)

    def _ownerless(self, kind: Kind, item: Item) -> bool:
        """Return whether it has owners, none of which exists."""
        references = item["metadata"].get("ownerReferences") or ()
        uids = {ref["uid"] for ref in references}
        return bool(uids) and not any(
            other["metadata"]["uid"] in uids
            for items in self._items.values()
            for other in items.values()
        )

    def _orphan(self, uid: str) -> None:
        for kind, item in self._dependents(uid):
            references = item["metadata"]["ownerReferences"]
            item["metadata"]["ownerReferences"] = [r for r in references if r["uid"] != uid]
            if not item["metadata"]["ownerReferences"]:
                del item["metadata"]["ownerReferences"]
            self.put(kind, item)

    def _finish_foreground(self, uid: str) -> None:
        """Remove an owner that waits for its dependents, if none blocks it any more."""
        if any(
            ref["uid"] == uid and ref.get("blockOwnerDeletion")
            for _, item in self._dependents(uid)
            for ref in item["metadata"]["ownerReferences"]
        ):
            return
        for kind, items in [*self._items.items()]:
            for item in [*items.values()]:
                if item["metadata"]["uid"] == uid and FOREGROUND in (
                    item["metadata"].get("finalizers") or ()
                ):
                    changed = copied(item)
                    changed["metadata"]["finalizers"].remove(FOREGROUND)
                    self.put(kind, changed)

    def _empty(self, namespace: str) -> None:
        for kind, items in [*self._items.items()]:
            for space, name in [*items]:
                if kind.namespaced and space == namespace and (space, name) in items:
                    self.remove(kind, copied(items[space, name]))


def grace_of(kind: Kind, item: Item) -> int:
    """Return the grace period of a deleted object, seconds; 0 except for running pods."""
    if kind.plural != "pods" or not item["spec"].get("nodeName"):
        return 0
    if (item.get("status") or {}).get("phase") in {"Succeeded", "Failed"}:
        return 0
    return int(item["spec"].get("terminationGracePeriodSeconds", 30))


def owned_by(item: Item, uid: str) -> bool:
    """Return whether an object has an owner with this uid."""
    return any(ref["uid"] == uid for ref in item["metadata"].get("ownerReferences") or ())


def now(later: int = 0) -> str:
    """Return the timestamp of an object, ``later`` seconds from now."""
    at = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=later)
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")
