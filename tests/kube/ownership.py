"""Field ownership: managedFields, and the conflicts of server-side apply.

Follows "Server-Side Apply" and the recorded objects and rejections: an Update takes
ownership of the fields it changes. An Apply may not change fields of another manager unless forced;
it owns the fields it contains, and releases those it no longer contains, removing them if they have
no other owner. Subresources have separate entries.
"""

from dataclasses import dataclass
from typing import Any

from tests.kube import fieldsets
from tests.kube.copies import copied
from tests.kube.errors import ApiError
from tests.kube.fieldsets import Fields
from tests.kube.kinds import Kind
from tests.kube.store import now

Item = dict[str, Any]

_NOBODYS = (
    "name", "namespace", "creationTimestamp", "selfLink", "uid", "generation", "managedFields",
    "resourceVersion", "deletionTimestamp", "deletionGracePeriodSeconds",
)  # fmt: skip
_MOST_UPDATERS = 10
"""Maximum number of Update entries of an object; the oldest are merged beyond it."""


@dataclass(frozen=True)
class Manager:
    """The identity of one entry of managedFields."""

    name: str
    operation: str
    api_version: str
    subresource: str = ""

    def __str__(self):
        message = f'"{self.name}"'
        if self.subresource:
            message += f' with subresource "{self.subresource}"'
        return f"{message} using {self.api_version}" if self.operation == "Update" else message


class Owners:
    """The managedFields entries of one object."""

    def __init__(self, entries: list[Item] | None):
        self.sets: dict[Manager, Fields] = {}
        self._before: dict[Manager, tuple[Fields, str]] = {}
        for entry in entries or ():
            manager = Manager(
                entry["manager"],
                entry["operation"],
                entry["apiVersion"],
                entry.get("subresource", ""),
            )
            fields = fieldsets.decoded(entry.get("fieldsV1") or {})
            self.sets[manager] = fields
            self._before[manager] = (set(fields), entry.get("time", now()))

    def entries(self) -> list[Item]:
        """Return them as managedFields: appliers first, then by time."""
        made = []
        for manager, fields in self.sets.items():
            if not fields:
                continue
            before, time = self._before.get(manager, (set(), ""))
            entry = {
                "manager": manager.name,
                "operation": manager.operation,
                "apiVersion": manager.api_version,
                "time": time if before == fields else now(),
                "fieldsType": "FieldsV1",
                "fieldsV1": fieldsets.encoded(fields),
            }
            made.append(
                entry | ({"subresource": manager.subresource} if manager.subresource else {})
            )
        return sorted(made, key=lambda e: (e["operation"], e["time"], e["manager"]))

    def take(self, manager: Manager, difference: fieldsets.Difference, *, force: bool) -> None:
        """Record that ``manager`` changes what differs.

        Raises:
            ApiError: 409; another manager owns it and ``force`` is not set.
        """
        changed = difference.modified | difference.added
        conflicts = {
            other: fields & changed
            for other, fields in self.sets.items()
            if other != manager and fields & changed
        }
        if conflicts and not force:
            raise conflict(conflicts)
        for other, fields in conflicts.items():
            self.sets[other] -= fields
        for other in self.sets:
            if other != manager:
                self.sets[other] -= difference.removed


def conflict(conflicts: dict[Manager, Fields]) -> ApiError:
    """Return the error of a rejected Apply, in the recorded form."""
    pairs = [
        (manager, fieldsets.spoken(path))
        for manager, fields in sorted(conflicts.items(), key=lambda one: str(one[0]))
        for path in sorted(fields)
    ]
    causes = [
        {"reason": "FieldManagerConflict", "message": f"conflict with {manager}", "field": path}
        for manager, path in pairs
    ]
    if len(pairs) == 1:
        manager, path = pairs[0]
        message = f"Apply failed with 1 conflict: conflict with {manager}: {path}"
    else:
        lines = []
        for manager in dict.fromkeys(manager for manager, _ in pairs):
            lines.append(f"conflicts with {manager}:")
            lines += [f"- {path}" for other, path in pairs if other == manager]
        message = f"Apply failed with {len(pairs)} conflicts: " + "\n".join(lines)
    return ApiError(409, message, "Conflict", {"causes": causes})


def _owned(item: Item, *, status: bool) -> Item:
    """Return the part of an object whose fields have owners."""
    metadata = {key: v for key, v in item.get("metadata", {}).items() if key not in _NOBODYS}
    left_out = {"apiVersion", "kind", "metadata", *(() if status else ("status",))}
    found = {key: value for key, value in item.items() if key not in left_out}
    return {**found, "metadata": metadata}


def _empty(kind: Kind) -> Item:
    """Return an object with only the fields that are not pointers in Go.

    These exist from the beginning, so adding them makes no manager their owner (recorded).
    """
    spec = None if kind.custom else kind.schema.at("spec")
    found: Item = {"metadata": {}}
    if spec is not None:
        found["spec"] = {}
        if "template" in spec.fields:
            found["spec"]["template"] = {"metadata": {}, "spec": {"containers": None}}
        if "strategy" in spec.fields:
            found["spec"]["strategy"] = {}
    return found


def _status(kind: Kind, subresource: str) -> bool:
    return subresource == "status" or not kind.has_status


def updated(
    kind: Kind, item: Item, live: Item | None, manager: str, subresource: str = ""
) -> list[Item]:
    """Return the managedFields of ``item``, changed from ``live`` by ``manager`` without an Apply.

    If the client sends managedFields, they are the starting point. ``[{}]``, and for built-in
    kinds an empty list, removes them, and the object is then no longer tracked. Missing or null
    fields leave them unchanged (recorded).
    """
    sent = item["metadata"].get("managedFields")
    known = (live or {}).get("metadata", {}).get("managedFields")
    if not subresource and (sent or (sent is not None and not kind.custom)):
        known = [entry for entry in sent if entry]
    if live is not None and not known:
        return []
    owners = Owners(known)
    status = _status(kind, subresource)
    old = _empty(kind) if live is None else _owned(live, status=status)
    difference = fieldsets.compared(old, _owned(item, status=status), kind.schema)
    who = Manager(manager, "Update", kind.api_version, subresource)
    owners.take(who, difference, force=True)
    mine = owners.sets.get(who, set()) - difference.removed
    owners.sets[who] = mine | difference.modified | difference.added
    return owners.entries()


def applied(
    kind: Kind, config: Item, live: Item | None, manager: str, subresource: str, *, force: bool
) -> Item:
    """Return the result of applying ``config`` to ``live``, with its managedFields.

    Raises:
        ApiError: 409 if another manager owns a changed field; 500 if the object has another type.
    """
    status = _status(kind, subresource)
    base = copied(live) if live is not None else {}
    owners = Owners(base.get("metadata", {}).get("managedFields"))
    if live is not None and not owners.sets:
        # Without tracking, existing fields get an owner of this name (recorded).
        before = Manager("before-first-apply", "Update", kind.api_version)
        found = _owned(base, status=status)
        owners.sets[before] = fieldsets.compared(_empty(kind), found, kind.schema).added
    who = Manager(manager, "Apply", kind.api_version, subresource)
    part = _owned(config, status=status)
    try:
        named = fieldsets.fields_of(part, kind.schema) - {("f:metadata",)}
        was = _owned(base, status=status)
        after = fieldsets.merged(was, part, kind.schema)
        last = owners.sets.get(who, set())
        owners.sets[who] = named
        everyones = set().union(*owners.sets.values())
        if dropped := last - named:
            after = fieldsets.without(after, dropped, everyones, kind.schema)
        difference = fieldsets.compared(was, after, kind.schema)
    except fieldsets.Duplicate as error:
        space = config["metadata"].get("namespace", "")
        name = f"{space}/{config['metadata']['name']}".lstrip("/")
        raise ApiError(
            500,
            f"failed to create typed patch object ({name}; {kind.api_version}, Kind={kind.kind}): "
            f"{error}",
            "",
        ) from error
    owners.take(who, difference, force=force)
    fixed = {key: value for key, value in base.get("metadata", {}).items() if key in _NOBODYS}
    kept = {} if status else {key: base[key] for key in ("status",) if key in base}
    metadata = {
        "name": config["metadata"]["name"],
        **after.pop("metadata", {}),
        **fixed,
        "managedFields": owners.entries(),
    }
    return {
        "apiVersion": kind.api_version,
        "kind": kind.kind,
        "metadata": metadata,
        **after,
        **kept,
    }
