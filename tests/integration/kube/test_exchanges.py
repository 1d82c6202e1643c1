"""Requests and the responses of an API server: one table for the fake and a real cluster.

The rows of leases and RayClusters with patches, 409, 403 and 410 are recorded from Kubernetes
1.36.2 with KubeRay 1.7.0; the others follow the OpenAPI document and "Kubernetes API Concepts".
A real cluster must have KubeRay's CustomResourceDefinitions, but need not run its operator.
"""

import re
from dataclasses import dataclass
from typing import Any

import pytest

from tests.integration.kube.target import Target
from tests.kube import objects

LEASES = "/apis/coordination.k8s.io/v1/namespaces/{ns}/leases"
CLUSTERS = "/apis/ray.io/v1/namespaces/{ns}/rayclusters"
MAPS = "/api/v1/namespaces/{ns}/configmaps"
DEPLOYMENTS = "/apis/apps/v1/namespaces/{ns}/deployments"
JOBS = "/apis/batch/v1/namespaces/{ns}/jobs"
MERGE = "application/merge-patch+json"
PATCH = "application/json-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
APPLY = "application/apply-patch+yaml"
ARRAY = "error decoding patch: json: cannot unmarshal array into Go value of type map"


def lease(name: str, **spec: Any) -> dict[str, Any]:
    given = {"holderIdentity": "a", "leaseDurationSeconds": 15} | spec
    return Target.head("coordination.k8s.io/v1", "Lease", name, spec=given)


def cluster(name: str) -> dict[str, Any]:
    made = objects.raycluster(name, objects.worker_group("ranks"))
    del made["metadata"]["namespace"]
    return made


def deployment(name: str, app: str = "a") -> dict[str, Any]:
    labels = {"app": app}
    spec = {
        "replicas": 0,
        "selector": {"matchLabels": labels},
        "template": {
            "metadata": {"labels": labels},
            "spec": {"containers": [{"name": "c", "image": "i"}]},
        },
    }
    return Target.head("apps/v1", "Deployment", name, spec=spec)


def job(name: str, image: str = "i") -> dict[str, Any]:
    pod = {"restartPolicy": "Never", "containers": [{"name": "c", "image": image}]}
    spec = {"suspend": True, "template": {"spec": pod}}
    return Target.head("batch/v1", "Job", name, spec=spec)


MADE = (
    (LEASES, lease("there")),
    (CLUSTERS, cluster("there")),
    (MAPS, Target.head("v1", "ConfigMap", "there", data={"a": "1"})),
    (DEPLOYMENTS, deployment("there")),
    (JOBS, job("there")),
)
TEST_FAILS = [{"op": "test", "path": "/spec/holderIdentity", "value": "z"}]
RENEW = [{"op": "add", "path": "/spec/holderIdentity", "value": "a"}]
REPLICAS = [{"op": "add", "path": "/spec/workerGroupSpecs/0/replicas", "value": 3}]
OLD = {"metadata": {"resourceVersion": "1"}}


@dataclass(frozen=True)
class Row:
    """A request and its response."""

    id: str
    method: str
    path: str
    kind: str
    body: Any
    status: int
    reason: str = ""
    message: str = ""
    """Regular expression that the message must match."""
    query: tuple[tuple[str, str], ...] = ()


FORCED = (("fieldManager", "other"), ("force", "true"))
STRICT = (("fieldValidation", "Strict"),)
J = "application/json"
ROWS = [
    # -- patches: content types -------------------------------------------------------------------
    Row("lease-array-as-merge", "PATCH", f"{LEASES}/there", MERGE, RENEW, 400, "BadRequest", ARRAY),
    Row("lease-json-patch", "PATCH", f"{LEASES}/there", PATCH, RENEW, 200),
    Row("cluster-array-as-merge", "PATCH", f"{CLUSTERS}/there", MERGE, REPLICAS, 400,
        "BadRequest", ARRAY),
    Row("cluster-json-patch", "PATCH", f"{CLUSTERS}/there", PATCH, REPLICAS, 200),
    Row("array-as-strategic", "PATCH", f"{LEASES}/there", STRATEGIC, RENEW, 400, "BadRequest"),
    Row("object-as-json-patch", "PATCH", f"{LEASES}/there", PATCH, {}, 400, "BadRequest",
        "cannot unmarshal object into Go value"),
    Row("strategic-of-custom", "PATCH", f"{CLUSTERS}/there", STRATEGIC, {}, 415,
        "UnsupportedMediaType", "the body of the request was in an unknown format"),
    Row("no-patch-type", "PATCH", f"{LEASES}/there", J, {}, 415, "UnsupportedMediaType"),
    Row("not-json", "POST", LEASES, "text/plain", {}, 415, "UnsupportedMediaType"),
    # -- patches: failed preconditions -------------------------------------------------------------
    Row("test-fails", "PATCH", f"{LEASES}/there", PATCH, TEST_FAILS, 422, "Invalid",
        "the server rejected our request due to an error in our request"),
    Row("remove-of-nothing", "PATCH", f"{LEASES}/there", PATCH,
        [{"op": "remove", "path": "/spec/preferredHolder"}], 422, "Invalid"),
    Row("patch-makes-invalid", "PATCH", f"{LEASES}/there", PATCH,
        [{"op": "add", "path": "/spec/leaseDurationSeconds", "value": 0}], 422, "Invalid",
        r'Lease.coordination.k8s.io "there" is invalid: spec.leaseDurationSeconds: Invalid value:'
        r" 0: must be greater than 0"),
    Row("patch-makes-another-type", "PATCH", f"{LEASES}/there", PATCH,
        [{"op": "add", "path": "/spec/leaseDurationSeconds", "value": "x"}], 422, "Invalid",
        "cannot unmarshal"),
    Row("patch-of-a-cluster-makes-another-type", "PATCH", f"{CLUSTERS}/there", PATCH,
        [{"op": "add", "path": "/spec/workerGroupSpecs/0/replicas", "value": "x"}], 422, "Invalid",
        r"spec.workerGroupSpecs\[0\].replicas"),
    Row("patch-renames", "PATCH", f"{LEASES}/there", MERGE, {"metadata": {"name": "b"}}, 400,
        "BadRequest", "name"),
    Row("merge-patch-of-an-old-version", "PATCH", f"{LEASES}/there", MERGE, OLD, 409, "Conflict",
        "the object has been modified; please apply your changes to the latest version"),
    Row("patch-of-nothing", "PATCH", f"{LEASES}/no", PATCH, RENEW, 404, "NotFound"),
    # -- create and update ------------------------------------------------------------------------
    Row("post-of-what-is-there", "POST", LEASES, J, lease("there"), 409, "AlreadyExists",
        'leases.coordination.k8s.io "there" already exists'),
    Row("post-makes", "POST", LEASES, J, lease("new"), 201),
    Row("post-of-another-type", "POST", LEASES, J, lease("x", leaseDurationSeconds="x"), 400,
        "BadRequest", 'Lease in version "v1" cannot be handled as a Lease'),
    Row("post-of-a-cluster-of-another-type", "POST", CLUSTERS, J,
        cluster("x") | {"spec": {"headGroupSpec": 1}}, 422, "Invalid"),
    Row("post-of-a-bad-name", "POST", LEASES, J, lease("Not_A_Name"), 422, "Invalid",
        "metadata.name: Invalid value"),
    Row("post-of-a-label-that-is-a-number", "POST", MAPS, J,
        Target.head("v1", "ConfigMap", "x", metadata={"labels": {"a": 1}}), 400, "BadRequest"),
    Row("post-of-a-cluster-label-that-is-a-number", "POST", CLUSTERS, J,
        Target.head("ray.io/v1", "RayCluster", "x", metadata={"labels": {"a": 1}},
                    spec=cluster("x")["spec"]), 400, "BadRequest"),
    Row("post-of-a-version", "POST", LEASES, J, lease("x") | {"metadata": {"name": "x"} |
        OLD["metadata"]}, 500, "", "resourceVersion should not be set"),
    Row("post-into-no-namespace", "POST", "/apis/coordination.k8s.io/v1/namespaces/no/leases", J,
        lease("x"), 404, "NotFound", 'namespaces "no" not found'),
    Row("post-of-another-kind", "POST", LEASES, J, Target.head("v1", "ConfigMap", "x"), 400,
        "BadRequest"),
    Row("put-of-an-old-version", "PUT", f"{LEASES}/there", J,
        lease("there") | {"metadata": {"name": "there"} | OLD["metadata"]}, 409, "Conflict"),
    Row("put-without-a-version", "PUT", f"{LEASES}/there", J, lease("there"), 422, "Invalid",
        "metadata.resourceVersion: Invalid value: .*: must be specified for an update"),
    Row("put-of-another-name", "PUT", f"{LEASES}/there", J, lease("other"), 400, "BadRequest",
        "the name of the object"),
    Row("put-makes-a-lease", "PUT", f"{LEASES}/put", J, lease("put"), 201),
    Row("put-of-nothing", "PUT", f"{CLUSTERS}/no", J, cluster("no"), 404, "NotFound"),
    Row("selector-of-a-deployment", "PUT", f"{DEPLOYMENTS}/there", J, deployment("there", "b"),
        422, "Invalid", "spec.selector: Invalid value: .*field is immutable"),
    Row("template-of-a-job", "PATCH", f"{JOBS}/there", MERGE, {"spec": {"template": {"spec": {
        "containers": [{"name": "c", "image": "other"}]}}}}, 422, "Invalid",
        "spec.template.*: Invalid value: .*field is immutable"),
    # -- unknown fields ---------------------------------------------------------------------------
    Row("unknown-field-strict", "POST", LEASES, J, lease("x", hodler="b"), 400, "BadRequest",
        'strict decoding error: unknown field "spec.hodler"', STRICT),
    Row("unknown-field-of-a-cluster-strict", "PATCH", f"{CLUSTERS}/there", MERGE,
        {"spec": {"rplicas": 1}}, 422, "Invalid",
        'strict decoding error: unknown field "spec.rplicas"', STRICT),
    Row("unknown-field", "PATCH", f"{CLUSTERS}/there", MERGE, {"spec": {"rplicas": 1}}, 200),
    # -- reading ----------------------------------------------------------------------------------
    Row("get-of-nothing", "GET", f"{LEASES}/no", J, None, 404, "NotFound",
        'leases.coordination.k8s.io "no" not found'),
    Row("no-such-resource", "GET", "/apis/ray.io/v1/namespaces/{ns}/raythings", J, None, 404, "",
        "page not found|could not find"),
    Row("bad-field-selector", "GET", "/api/v1/namespaces/{ns}/pods", J, None, 400, "BadRequest",
        "field label not supported: spec.image", (("fieldSelector", "spec.image=x"),)),
    Row("bad-label-selector", "GET", "/api/v1/namespaces/{ns}/pods", J, None, 400, "BadRequest",
        "unable to parse requirement", (("labelSelector", "a in b"),)),
    # -- server-side apply ------------------------------------------------------------------------
    Row("apply-without-a-manager", "PATCH", f"{LEASES}/there", APPLY, lease("there"), 422,
        "Invalid", "fieldManager: Required value: is required for apply patch"),
    Row("apply-over-another", "PATCH", f"{MAPS}/there", APPLY,
        Target.head("v1", "ConfigMap", "there", data={"a": "2"}), 409, "Conflict",
        'Apply failed with 1 conflict: conflict with ".*" using v1: .data.a',
        (("fieldManager", "other"),)),
    Row("apply-by-force", "PATCH", f"{MAPS}/there", APPLY,
        Target.head("v1", "ConfigMap", "there", data={"a": "2"}), 200, query=FORCED),
    Row("apply-makes", "PATCH", f"{MAPS}/applied", APPLY,
        Target.head("v1", "ConfigMap", "applied", data={"a": "2"}), 201, query=FORCED),
    Row("apply-of-managed-fields", "PATCH", f"{MAPS}/there", APPLY,
        Target.head("v1", "ConfigMap", "there", metadata={"managedFields": [
            {"manager": "a", "operation": "Apply", "apiVersion": "v1", "fieldsType": "FieldsV1",
             "fieldsV1": {"f:data": {}}}]}),
        400, "BadRequest", "metadata.managedFields must be nil", FORCED),
    # -- delete -----------------------------------------------------------------------------------
    Row("delete-of-nothing", "DELETE", f"{LEASES}/no", J, None, 404, "NotFound"),
    Row("delete-of-another", "DELETE", f"{LEASES}/there", J,
        {"preconditions": {"uid": "no"}}, 409, "Conflict",
        r"the UID in the precondition \(no\) does not match the UID"),
    Row("delete", "DELETE", f"{LEASES}/there", J, None, 200),
]  # fmt: skip


@pytest.fixture
def made(target):
    for path, body in MADE:
        answer = target.send("POST", path, body, fieldManager="test")
        assert answer.status_code == 201, answer.text
    yield target
    for path, _ in MADE:
        target.send("DELETE", path, {"propagationPolicy": "Background"})
        for name in ("new", "put", "applied", "x"):
            target.send("DELETE", f"{path}/{name}")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_exchange(made, row):
    answer = made.send(row.method, row.path, row.body, row.kind, **dict(row.query))
    assert answer.status_code == row.status, answer.text
    if row.status < 400:
        return
    body = answer.json() if "json" in answer.headers["content-type"] else {"message": answer.text}
    assert body.get("reason", row.reason) == row.reason, answer.text
    assert re.search(row.message, body["message"]), answer.text
    if "kind" in body:
        assert (body["kind"], body["status"], body["code"]) == ("Status", "Failure", row.status)
