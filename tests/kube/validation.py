"""Validation and defaulting of objects.

Schemas define types, required fields, bounds, unknown fields and (of custom resources) defaults.
This module adds the checks of built-in kinds beyond their schemas that matter to this project's
objects: immutable fields, a Lease's numbers, names and labels, defaults of Go. Rules in CEL are not
evaluated.
"""

import json
import re
from typing import Any

from tests.kube import schemas
from tests.kube.copies import copied
from tests.kube.errors import ApiError, bad_request, invalid
from tests.kube.kinds import Kind

Item = dict[str, Any]
Problem = tuple[str, str, str]

_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
_KEY = re.compile(
    r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
)
_MICRO_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)")
_ANY_NAME = {"roles", "rolebindings", "clusterroles", "clusterrolebindings"}
_LABEL_NAMES = {"services", "namespaces"}
_IMMUTABLE = {
    "deployments": ["spec.selector"],
    "statefulsets": ["spec.selector", "spec.serviceName", "spec.volumeClaimTemplates"],
    "daemonsets": ["spec.selector"],
    "jobs": ["spec.template", "spec.selector", "spec.completionMode"],
    "rolebindings": ["roleRef"],
    "clusterrolebindings": ["roleRef"],
    "secrets": ["type"],
    "services": ["spec.clusterIP"],
    "persistentvolumeclaims": ["spec.accessModes", "spec.storageClassName", "spec.volumeName"],
    "storageclasses": ["provisioner", "parameters"],
    "priorityclasses": ["value"],
}


def decoded(
    kind: Kind,
    body: Any,
    validation: str,
    warn: list[str],
    patch: str = "",
    *,
    defaults: bool = True,
) -> Item:
    """Return the object in ``body`` as the server stores it: pruned, without nulls, with defaults.

    Args:
        kind: the expected kind.
        body: parsed JSON.
        validation: of unknown fields, "Strict" rejects, "Warn" (the default) puts them into
            ``warn``, "Ignore" drops them.
        warn: receives the texts of Warning headers.
        patch: the object as text if it results from a patch; errors are then 422, not 400.
        defaults: whether to set them.

    Raises:
        ApiError: 400 or 422.
    """
    if not isinstance(body, dict):
        raise bad_request(f"couldn't get version/kind; json parse error: {body!r} is no object")
    given = (body.get("apiVersion"), body.get("kind"))
    if given != (kind.api_version, kind.kind):
        raise bad_request(
            f'{given[1]} in version "{str(given[0]).rpartition("/")[2]}" cannot be handled as a '
            f"{kind.kind}: the API version in the data ({given[0]}) does not match the expected "
            f"API version ({kind.api_version})"
        )
    unknown = [f'unknown field "{path}"' for path in schemas.unknown_fields(body, kind.schema)]
    if unknown and validation == "Strict":
        message = f"strict decoding error: {', '.join(unknown)}"
        if patch:
            raise _invalid_patch(patch, message)
        if not kind.custom and not patch:
            version = kind.version
            message = (
                f'{kind.kind} in version "{version}" cannot be handled as a {kind.kind}: {message}'
            )
        raise bad_request(message)
    if validation in {"", "Warn"}:
        warn += unknown
    item = schemas.pruned(copied(body), kind.schema)
    item = schemas.without_nulls(item, kind.schema, custom=kind.custom)
    item.setdefault("metadata", {})
    _check_types(kind, item, patch)
    return completed(kind, item) if defaults else item


def completed(kind: Kind, item: Item) -> Item:
    """Return an object with the defaults of its CustomResourceDefinition."""
    found: Item = schemas.defaulted(item, kind.schema) if kind.custom else item
    return found


def _check_types(kind: Kind, item: Item, patch: str) -> None:
    """Raise for values that Go cannot decode into a built-in kind, or into any kind's metadata."""
    read = {"metadata": item["metadata"]} if kind.custom else item
    wrong = [p for p in schemas.problems(read, kind.schema) if p[0] == "FieldValueTypeInvalid"]
    if kind.plural == "leases":
        wrong += [
            ("FieldValueTypeInvalid", f"spec.{key}", f'parsing time "{value}"')
            for key in ("acquireTime", "renewTime")
            if (value := (item.get("spec") or {}).get(key)) is not None
            and not _MICRO_TIME.fullmatch(str(value))
        ]
    if not wrong:
        return
    _, path, sentence = wrong[0]
    message = f"json: cannot unmarshal into Go struct field {kind.kind}.{path}: {sentence}"
    if patch:
        raise _invalid_patch(patch, message)
    raise bad_request(
        f'{kind.kind} in version "{kind.version}" cannot be handled as a {kind.kind}: {message}'
    )


def _invalid_patch(patch: str, said: str) -> ApiError:
    sentence = f"Invalid value: {json.dumps(patch)}: {said}"
    causes = [{"reason": "FieldValueInvalid", "message": sentence, "field": "patch"}]
    return ApiError(422, f' "" is invalid: patch: {sentence}', details={"causes": causes})


def check(kind: Kind, item: Item, live: Item | None) -> None:
    """Raise for an invalid object, or an invalid change from ``live``.

    Raises:
        ApiError: 422.
    """
    name = item["metadata"].get("name", "")
    found = [*_metadata_problems(kind, item)]
    found += schemas.problems(item, kind.schema)
    if kind.plural == "leases":
        found += _lease_problems(item)
    if live is not None:
        found += _immutable_problems(kind, item, live)
    if found:
        raise invalid(kind, name, found)


def _metadata_problems(kind: Kind, item: Item) -> list[Problem]:
    metadata, found = item["metadata"], []
    name = metadata.get("name", "")
    if not name:
        sentence = "Required value: name or generateName is required"
        found.append(("FieldValueRequired", "metadata.name", sentence))
    elif kind.plural not in _ANY_NAME:
        short = kind.plural in _LABEL_NAMES
        shape, longest = (_LABEL, 63) if short else (_SUBDOMAIN, 253)
        if not shape.fullmatch(name) or len(name) > longest:
            what = "label" if short else "subdomain"
            sentence = (
                f'Invalid value: "{name}": a lowercase RFC 1123 {what} must consist of lower case '
                "alphanumeric characters or '-'"
            )
            found.append(("FieldValueInvalid", "metadata.name", sentence))
    for key, value in (metadata.get("labels") or {}).items():
        if not _KEY.fullmatch(key):
            sentence = f'Invalid value: "{key}": name part must consist of alphanumeric characters'
            found.append(("FieldValueInvalid", "metadata.labels", sentence))
        if not isinstance(value, str) or not _VALUE.fullmatch(value) or len(value) > 63:
            sentence = (
                f'Invalid value: "{value}": a valid label must be an empty string or consist of '
                "alphanumeric characters"
            )
            found.append(("FieldValueInvalid", "metadata.labels", sentence))
    return found


def _lease_problems(item: Item) -> list[Problem]:
    spec, found = item.get("spec") or {}, []
    duration, transitions = spec.get("leaseDurationSeconds"), spec.get("leaseTransitions")
    if duration is not None and duration <= 0:
        sentence = f"Invalid value: {duration}: must be greater than 0"
        found.append(("FieldValueInvalid", "spec.leaseDurationSeconds", sentence))
    if transitions is not None and transitions < 0:
        sentence = f"Invalid value: {transitions}: must be greater than or equal to 0"
        found.append(("FieldValueInvalid", "spec.leaseTransitions", sentence))
    return found


def _immutable_problems(kind: Kind, item: Item, live: Item) -> list[Problem]:
    found = [
        ("FieldValueInvalid", path, "Invalid value: field is immutable")
        for path in _IMMUTABLE.get(kind.plural, ())
        if (before := _at(live, path)) not in (None, "") and _at(item, path) != before
    ]
    sealed = kind.plural in {"configmaps", "secrets"} and live.get("immutable")
    if sealed and (item.get("data") != live.get("data") or not item.get("immutable")):
        sentence = "Forbidden: field is immutable when `immutable` is set"
        found.append(("FieldValueForbidden", "data", sentence))
    if kind.plural == "pods" and _fixed(item) != _fixed(live):
        sentence = (
            "Forbidden: pod updates may not change fields other than "
            "`spec.containers[*].image`,`spec.initContainers[*].image`,"
            "`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing "
            "tolerations),`spec.terminationGracePeriodSeconds`"
        )
        found.append(("FieldValueForbidden", "spec", sentence))
    if "deletionTimestamp" in live["metadata"]:
        before = {*(live["metadata"].get("finalizers") or ())}
        if more := {*(item["metadata"].get("finalizers") or ())} - before:
            sentence = (
                "Forbidden: no new finalizers can be added if the object is being deleted, "
                f"found new finalizers {sorted(more)}"
            )
            found.append(("FieldValueForbidden", "metadata.finalizers", sentence))
    return found


def _fixed(pod: Item) -> Item:
    spec = copied(pod["spec"])
    for key in (
        "activeDeadlineSeconds",
        "tolerations",
        "terminationGracePeriodSeconds",
        "nodeName",
    ):
        spec.pop(key, None)
    for container in (*spec.get("containers", ()), *spec.get("initContainers", ())):
        container.pop("image", None)
    return spec


def _at(item: Any, path: str) -> Any:
    for key in path.split("."):
        item = item.get(key) if isinstance(item, dict) else None
    return item


def filled(kind: Kind, item: Item) -> None:
    """Set the defaults of built-in kinds that are read here."""
    spec = item.get("spec")
    if kind.plural == "services" and spec is not None:
        spec.setdefault("type", "ClusterIP")
        spec.setdefault("sessionAffinity", "None")
        for port in spec.get("ports") or ():
            port.setdefault("protocol", "TCP")
            port.setdefault("targetPort", port["port"])
    elif kind.plural == "deployments" and spec is not None:
        spec.setdefault("replicas", 1)
        spec.setdefault("progressDeadlineSeconds", 600)
    elif kind.plural == "pods" and spec is not None:
        spec.setdefault("restartPolicy", "Always")
        spec.setdefault("terminationGracePeriodSeconds", 30)
        item.setdefault("status", {}).setdefault("phase", "Pending")
    elif kind.plural == "jobs" and spec is not None:
        for key, value in (("completions", 1), ("parallelism", 1), ("backoffLimit", 6)):
            spec.setdefault(key, value)
    elif kind.plural == "secrets":
        item.setdefault("type", "Opaque")
    elif kind.plural == "namespaces":
        item.setdefault("status", {}).setdefault("phase", "Active")
        item["metadata"].setdefault("labels", {})["kubernetes.io/metadata.name"] = item["metadata"][
            "name"
        ]
