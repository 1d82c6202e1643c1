"""The effect of requests on the store: create, update, patch, delete, and all their errors.

Follows "Kubernetes API Concepts" (resource versions, dry runs, subresources) and the recorded
exchanges: 409 AlreadyExists for a POST of an existing object, 409 Conflict for an old
resourceVersion, 400 and 422 as in :mod:`tests.kube.patches` and :mod:`tests.kube.validation`.
Methods are synchronous and take the data of HTTP requests, so fake controllers use them as HTTP
clients do.
"""

import json
from dataclasses import dataclass, field, replace
from typing import Any

from tests.kube import ownership, patches, validation
from tests.kube.copies import copied
from tests.kube.errors import (
    ApiError,
    already_exists,
    bad_request,
    conflict,
    invalid,
    not_found,
    wrong_uid,
)
from tests.kube.kinds import Kind
from tests.kube.store import Store, grace_of

Item = dict[str, Any]


@dataclass
class Options:
    """Query parameters and headers of a write request."""

    manager: str = "unknown"
    """fieldManager, or the first word of the user agent."""
    given_manager: bool = True
    """Whether ``fieldManager`` was given; server-side apply requires it."""
    validation: str = ""
    """fieldValidation."""
    dry_run: bool = False
    force: bool = False
    """The ``force`` parameter of server-side apply."""
    subresource: str = ""
    warnings: list[str] = field(default_factory=list)
    """Texts of the response's Warning headers."""


@dataclass(frozen=True)
class Place:
    """The path of one object."""

    kind: Kind
    name: str
    namespace: str = ""


class Api:
    """An API server without HTTP."""

    def __init__(self, store: Store):
        self.store = store
        self._addresses = 0

    # -- create -----------------------------------------------------------------------------------

    def create(self, kind: Kind, namespace: str, body: Any, options: Options) -> Item:
        """Create an object.

        Raises:
            ApiError: 400, 403, 404 (its namespace), 409 or 422.
        """
        item = validation.decoded(kind, body, options.validation, options.warnings)
        metadata = item["metadata"]
        if kind.namespaced:
            given = metadata.setdefault("namespace", namespace)
            if given != namespace:
                raise bad_request(
                    "the namespace of the provided object does not match the namespace sent on "
                    "the request"
                )
        if metadata.get("resourceVersion"):
            # Not a Status object, hence no 400 (recorded).
            message = "resourceVersion should not be set on objects to be created"
            raise ApiError(500, message, "")
        name = metadata.get("name", "")
        with self.store.lock:
            self._check_namespace(kind, namespace, name)
            if name and self.store.find(kind, name, namespace) is not None:
                raise already_exists(kind, name)
            for key in ("uid", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"):
                metadata.pop(key, None)
            if kind.has_status:
                item.pop("status", None)
            self.store.born(item)
            if not kind.counted:
                del metadata["generation"]
            validation.filled(kind, item)
            self._allocate(kind, item, None)
            validation.check(kind, item, None)
            self._own(kind, item, None, options)
            return item if options.dry_run else self.store.put(kind, item)

    def _allocate(self, kind: Kind, item: Item, live: Item | None) -> None:
        """Assign an address to a Service, or keep the one that it has."""
        if kind.plural != "services" or item["spec"].get("type") == "ExternalName":
            return
        given = item["spec"].get("clusterIP") or ((live or {}).get("spec") or {}).get("clusterIP")
        if not given:
            self._addresses += 1
            given = f"10.96.{self._addresses // 250}.{self._addresses % 250 + 1}"
        item["spec"] |= {"clusterIP": given, "clusterIPs": [given]}

    def _check_namespace(self, kind: Kind, namespace: str, name: str) -> None:
        if not kind.namespaced:
            return
        spaces = self.store.kinds.named("namespaces")
        found = self.store.find(spaces, namespace)
        if found is None:
            raise not_found(spaces, namespace)
        if "deletionTimestamp" in found["metadata"]:
            raise ApiError(
                403,
                f'{kind.resource} "{name}" is forbidden: unable to create new content in namespace '
                f"{namespace} because it is being terminated",
            )

    # -- update and patch -------------------------------------------------------------------------

    def update(self, place: Place, body: Any, options: Options) -> tuple[Item, bool]:
        """Handle a PUT; return the object and whether it is new.

        Raises:
            ApiError: 400, 404, 409 or 422.
        """
        item = validation.decoded(place.kind, body, options.validation, options.warnings)
        if item["metadata"].get("name") != place.name:
            raise bad_request(
                f"the name of the object ({item['metadata'].get('name', '')}) does not match the "
                f"name on the URL ({place.name})"
            )
        with self.store.lock:
            live = self.store.find(place.kind, place.name, place.namespace)
            if live is None:
                if place.kind.create_by_put and not options.subresource:
                    return self.create(place.kind, place.namespace, body, options), True
                raise not_found(place.kind, place.name)
            if not item["metadata"].get("resourceVersion") and not place.kind.unconditional:
                sentence = "Invalid value: 0: must be specified for an update"
                problem = ("FieldValueInvalid", "metadata.resourceVersion", sentence)
                raise invalid(place.kind, place.name, [problem])
            return self._replace(place, live, item, options), False

    def patch(self, place: Place, patch: Any, content_type: str, options: Options) -> Item:
        """Handle a PATCH other than server-side apply.

        Raises:
            ApiError: 400, 404, 409, 415 or 422.
        """
        kind = place.kind
        with self.store.lock:
            live = self.store.find(kind, place.name, place.namespace)
            if live is None:
                raise not_found(kind, place.name)
            body = patches.patched(live, patch, content_type, kind.schema, custom=kind.custom)
            text = json.dumps(body, separators=(",", ":"))
            item = validation.decoded(kind, body, options.validation, options.warnings, text)
            if item["metadata"].get("name") != place.name:
                raise bad_request("the name of the object does not match the name on the URL")
            return self._replace(place, live, item, options)

    def _replace(
        self, place: Place, live: Item, item: Item, options: Options, *, owned: bool = False
    ) -> Item:
        """Replace ``live`` by ``item``, limited to what the subresource may change.

        ``owned``: the managed fields of ``item`` are already up to date.
        """
        kind = place.kind
        self._check_versions(kind, live, item)
        item = self._reachable(kind, live, item, options.subresource)
        validation.filled(kind, item)
        self._allocate(kind, item, live)
        validation.check(kind, item, live)
        if kind.counted and _counts(kind, item) != _counts(kind, live):
            item["metadata"]["generation"] = live["metadata"].get("generation", 0) + 1
        if not owned:
            self._own(kind, item, live, options)
        if item == live or options.dry_run:
            return copied(item)
        return self.store.put(kind, item)

    @staticmethod
    def _check_versions(kind: Kind, live: Item, item: Item) -> None:
        name, sent = live["metadata"]["name"], item["metadata"]
        uid, version = live["metadata"]["uid"], live["metadata"]["resourceVersion"]
        if sent.get("uid") and sent["uid"] != uid:
            why = f"UID in precondition: {sent['uid']}, UID in object meta: {uid}"
            raise conflict(kind, name, f"Precondition failed: {why}")
        if sent.get("resourceVersion") and sent["resourceVersion"] != version:
            raise conflict(kind, name)

    @staticmethod
    def _reachable(kind: Kind, live: Item, item: Item, subresource: str) -> Item:
        """Return ``live`` with the fields of this resource or subresource from the new object."""
        item = copied(item)
        if subresource == "status":
            found = copied(live)
            found.pop("status", None)
            found["metadata"] |= _kept(item["metadata"], "managedFields")
            return {**found, **_kept(item, "status")}
        if kind.has_status:
            item.pop("status", None)
            item |= copied(_kept(live, "status"))
        fixed = (
            "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds",
            "generation", "selfLink", "namespace", "generateName", "resourceVersion",
        )  # fmt: skip
        for key in fixed:
            item["metadata"].pop(key, None)
        item["metadata"] |= copied(_kept(live["metadata"], *fixed))
        return item

    def apply(self, place: Place, config: Any, options: Options) -> tuple[Item, bool]:
        """Handle a server-side apply; return the object and whether it is new.

        Raises:
            ApiError: 400, 404, 409 or 422.
        """
        kind = place.kind
        if not isinstance(config, dict):
            raise bad_request("error decoding YAML: the patch is no object")
        if not options.given_manager:
            message = "Required value: is required for apply patch"
            causes = [{"reason": "FieldValueRequired", "message": message, "field": "fieldManager"}]
            what = 'PatchOptions.meta.k8s.io "" is invalid: fieldManager'
            raise ApiError(422, f"{what}: {message}", details={"causes": causes})
        if config.get("metadata", {}).get("managedFields"):
            raise bad_request("metadata.managedFields must be nil")
        strict = options.validation
        config = validation.decoded(kind, config, strict, options.warnings, defaults=False)
        name = config["metadata"].setdefault("name", place.name)
        if name != place.name:
            raise bad_request(
                f"the name of the object ({name}) does not match the name on the URL ({place.name})"
            )
        with self.store.lock:
            live = self.store.find(kind, place.name, place.namespace)
            who, below = options.manager, options.subresource
            if live is None:
                if below:
                    raise not_found(kind, place.name)
                self._check_namespace(kind, place.namespace, place.name)
                item = ownership.applied(kind, config, None, who, below, force=options.force)
                return self._create_applied(place, item, options), True
            self._check_versions(kind, live, config)
            item = ownership.applied(kind, config, live, who, below, force=options.force)
            item = validation.completed(kind, item)
            return self._replace(place, live, item, options, owned=True), False

    def _create_applied(self, place: Place, item: Item, options: Options) -> Item:
        kind, managed = place.kind, item["metadata"].pop("managedFields")
        item = validation.completed(kind, item)
        made = self.create(kind, place.namespace, item, replace(options, dry_run=True))
        made["metadata"]["managedFields"] = managed
        return made if options.dry_run else self.store.put(kind, made)

    @staticmethod
    def _own(kind: Kind, item: Item, live: Item | None, options: Options) -> None:
        """Update the managed fields."""
        entries = ownership.updated(kind, item, live, options.manager, options.subresource)
        item["metadata"].pop("managedFields", None)
        if entries:
            item["metadata"]["managedFields"] = entries

    # -- delete -----------------------------------------------------------------------------------

    def delete(self, place: Place, body: Any, options: Options) -> tuple[Item, bool]:
        """Handle a DELETE with DeleteOptions ``body``; return the object and whether it is gone.

        Raises:
            ApiError: 404 or 409.
        """
        wanted = body if isinstance(body, dict) else {}
        kind = place.kind
        with self.store.lock:
            live = self.store.get(kind, place.name, place.namespace)
            conditions, uid = wanted.get("preconditions") or {}, live["metadata"]["uid"]
            if conditions.get("uid") not in {None, uid}:
                raise wrong_uid(kind, place.name, conditions["uid"], uid)
            self._check_versions(kind, live, {"metadata": conditions})
            policy = wanted.get("propagationPolicy") or "Background"
            if wanted.get("orphanDependents"):
                policy = "Orphan"
            grace = grace_of(kind, live)
            if grace and wanted.get("gracePeriodSeconds") is not None:
                grace = int(wanted["gracePeriodSeconds"])
            if options.dry_run:
                return live, True
            if grace:
                if "deletionTimestamp" not in live["metadata"]:
                    live = self.store.mark(kind, place.name, place.namespace, grace)
                return live, False
            live["metadata"].pop("deletionGracePeriodSeconds", None)
            item = self.store.delete(kind, place.name, place.namespace, policy)
            return item, self.store.find(kind, place.name, place.namespace) is None


def _kept(item: Item, *keys: str) -> Item:
    return {key: item[key] for key in keys if key in item}


def _counts(kind: Kind, item: Item) -> Item:
    """Return the part of an object whose changes increment its generation."""
    left_out = {"metadata", *(["status"] if kind.has_status else [])}
    return {key: value for key, value in item.items() if key not in left_out}
