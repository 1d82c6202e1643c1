"""Behaviour of an API server over several requests, on the fake and on a real cluster."""

import itertools
import json
import time

import httpx
import pytest

from tests.integration.kube.target import Target
from tests.integration.kube.test_exchanges import (
    APPLY,
    CLUSTERS,
    LEASES,
    MAPS,
    MERGE,
    PATCH,
    STRATEGIC,
    cluster,
    deployment,
    lease,
)
from tests.kube import objects
from tests.kube.controllers import settle
from tests.kube.kubelet import Kubelet
from tests.kube.kuberay import KubeRay
from tests.kube.workloads import workloads
from tests.support.waiting import PATIENCE

_NAMES = (f"o{number}" for number in itertools.count())
RIGHTS = "rbac.authorization.k8s.io"


@pytest.fixture
def name():
    return next(_NAMES)


def config_map(name, **metadata):
    return Target.head("v1", "ConfigMap", name, metadata=metadata, data={"a": "1"})


def owners(item):
    """Return the fields of each manager."""
    return {
        (entry["manager"], entry["operation"], entry.get("subresource", "")): entry["fieldsV1"]
        for entry in item["metadata"]["managedFields"]
    }


def ok(answer):
    assert answer.is_success, answer.text
    return answer.json()


# -- objects --------------------------------------------------------------------------------------


def test_a_change_of_nothing_keeps_the_version(target, name):
    made = ok(target.send("POST", LEASES, lease(name), fieldManager="t"))
    assert "generation" not in made["metadata"]
    path = f"{LEASES}/{name}"
    same = ok(
        target.send("PATCH", path, {"spec": {"holderIdentity": "a"}}, MERGE, fieldManager="t")
    )
    assert same["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]
    other = ok(target.send("PATCH", path, {"spec": {"holderIdentity": "b"}}, MERGE))
    assert int(other["metadata"]["resourceVersion"]) > int(made["metadata"]["resourceVersion"])


def test_defaults_generation_and_status_of_a_custom_resource(target, name):
    made = ok(target.send("POST", CLUSTERS, cluster(name) | {"status": {"state": "ready"}}))
    assert "status" not in made or made["status"].get("state") != "ready"
    [group] = made["spec"]["workerGroupSpecs"]
    assert (group["numOfHosts"], group["priority"]) == (1, 0)
    assert made["metadata"]["generation"] == 1
    path = f"{CLUSTERS}/{name}"
    labelled = ok(target.send("PATCH", path, {"metadata": {"labels": {"a": "b"}}}, MERGE))
    assert labelled["metadata"]["generation"] == 1
    replicas = [{"op": "add", "path": "/spec/workerGroupSpecs/0/replicas", "value": 1}]
    grown = ok(target.send("PATCH", path, replicas, PATCH))
    assert grown["metadata"]["generation"] == 2
    both = {"spec": {"rayVersion": "9"}, "status": {"reason": "why"}}
    updated = ok(target.send("PATCH", f"{path}/status", both, MERGE))
    assert updated["status"]["reason"] == "why"
    assert "rayVersion" not in updated["spec"]
    assert updated["metadata"]["generation"] == 2


def test_finalizers_keep_an_object_until_they_are_removed(target, name):
    path, mine = f"{MAPS}/{name}", "example.com/a"
    ok(target.send("POST", MAPS, config_map(name, finalizers=[mine])))
    deleted = ok(target.send("DELETE", path))
    assert "deletionTimestamp" in (deleted if "metadata" in deleted else {})["metadata"]
    assert "deletionTimestamp" in ok(target.send("GET", path))["metadata"]
    more = {"metadata": {"finalizers": [mine, "example.com/b"]}}
    refused = target.send("PATCH", path, more, MERGE)
    assert refused.status_code == 422
    assert "no new finalizers can be added if the object is being deleted" in refused.text
    ok(target.send("PATCH", path, {"metadata": {"finalizers": None}}, MERGE))
    assert target.send("GET", path).status_code == 404


def test_a_deleted_object_is_answered_with_a_status(target, name):
    made = ok(target.send("POST", LEASES, lease(name)))
    deleted = ok(target.send("DELETE", f"{LEASES}/{name}"))
    assert (deleted["kind"], deleted["status"]) == ("Status", "Success")
    assert deleted["details"] == {
        "name": name,
        "group": "coordination.k8s.io",
        "kind": "leases",
        "uid": made["metadata"]["uid"],
    }


def test_a_dry_run_keeps_nothing(target, name):
    ok(target.send("POST", MAPS, config_map(name), dryRun="All"))
    assert target.send("GET", f"{MAPS}/{name}").status_code == 404


def test_a_generated_name(target):
    body = config_map("x")
    body["metadata"] = {"generateName": "made-"}
    made = ok(target.send("POST", MAPS, body))
    assert made["metadata"]["name"].startswith("made-")
    assert len(made["metadata"]["name"]) == len("made-") + 5


def test_a_list_in_pieces(target, name):
    for number in range(3):
        ok(target.send("POST", MAPS, config_map(f"{name}-{number}", labels={"of": name})))
    query = {"labelSelector": f"of={name}", "limit": "2"}
    first = ok(target.send("GET", MAPS, **query))
    rest = ok(target.send("GET", MAPS, **query, **{"continue": first["metadata"]["continue"]}))
    names = [item["metadata"]["name"] for item in first["items"] + rest["items"]]
    assert names == [f"{name}-{number}" for number in range(3)]
    assert "continue" not in rest["metadata"]
    some = {"labelSelector": f"of in ({name}),of!=x", "fieldSelector": f"metadata.name={name}-1"}
    assert len(ok(target.send("GET", MAPS, **some))["items"]) == 1


def until(target, true):
    """Run the fake's controllers, or wait for a real cluster's, until the condition holds."""
    if target.server is not None:
        settle(target.server, workloads, Kubelet(), KubeRay())
        assert true()
        return
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end, "waited in vain for the cluster's controllers"
        time.sleep(0.2)


def test_an_eviction_keeps_to_the_budget(target, name):
    pods, budgets = (
        "/api/v1/namespaces/{ns}/pods",
        "/apis/policy/v1/namespaces/{ns}/poddisruptionbudgets",
    )
    labels = {"of": name}
    container = {"name": "c", "image": "i"}
    pod = Target.head(
        "v1", "Pod", name, metadata={"labels": labels}, spec={"containers": [container]}
    )
    spec = {"minAvailable": 1, "selector": {"matchLabels": labels}}
    ok(target.send("POST", pods, pod))
    ok(
        target.send(
            "POST", budgets, Target.head("policy/v1", "PodDisruptionBudget", name, spec=spec)
        )
    )

    def healthy():
        status = ok(target.send("GET", f"{budgets}/{name}")).get("status", {})
        return status.get("currentHealthy") == 1

    until(target, healthy)
    body = Target.head("policy/v1", "Eviction", name)
    refused = target.send("POST", f"{pods}/{name}/eviction", body)
    assert refused.status_code == 429
    said = refused.json()
    assert said["reason"] == "TooManyRequests"
    assert said["message"] == "Cannot evict pod as it would violate the pod's disruption budget."
    assert said["details"]["causes"] == [
        {
            "reason": "DisruptionBudget",
            "message": f"The disruption budget {name} needs 1 healthy pods and has 1 currently",
        }
    ]
    ok(target.send("DELETE", f"{budgets}/{name}"))
    assert ok(target.send("POST", f"{pods}/{name}/eviction", body))["status"] == "Success"
    left = target.send("GET", f"{pods}/{name}")
    if left.status_code == 200:  # a real kubelet may have been quick
        assert "deletionTimestamp" in left.json()["metadata"]
        reasons = {c["type"]: c.get("reason") for c in left.json()["status"]["conditions"]}
        assert reasons["DisruptionTarget"] == "EvictionByEvictionAPI"
    until(target, lambda: target.send("GET", f"{pods}/{name}").status_code == 404)


def test_dependents_go_with_their_owner(target, name):
    owner = ok(target.send("POST", MAPS, config_map(name)))
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": name}
    reference["uid"] = owner["metadata"]["uid"]
    mine = f"{MAPS}/{name}-mine"
    for number, suffix in enumerate(("mine", "kept")):
        references = [reference] if number == 0 else []
        ok(target.send("POST", MAPS, config_map(f"{name}-{suffix}", ownerReferences=references)))
    ok(target.send("DELETE", f"{MAPS}/{name}", {"propagationPolicy": "Background"}))
    until(target, lambda: target.send("GET", mine).status_code == 404)
    assert target.send("GET", f"{MAPS}/{name}-kept").status_code == 200


# -- rights ---------------------------------------------------------------------------------------


def test_rights_are_those_of_the_roles(target, name):
    rules = [
        {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "patch"],
         "resourceNames": ["mine"]},
        {"apiGroups": ["ray.io"], "resources": ["rayclusters"], "verbs": ["get"]},
    ]  # fmt: skip
    account, role, binding = objects.service_account(name, target.namespace, *rules)
    ok(target.send("POST", "/api/v1/namespaces/{ns}/serviceaccounts", account))
    for plural, item in (("roles", role), ("rolebindings", binding)):
        ok(target.send("POST", f"/apis/{RIGHTS}/v1/namespaces/{{ns}}/{plural}", item))
    ok(target.send("POST", LEASES, lease("mine")))
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    path = f"/api/v1/namespaces/{{ns}}/serviceaccounts/{name}/token"
    token = ok(target.send("POST", path, request))["status"]["token"]
    user = f"system:serviceaccount:{target.namespace}:{name}"
    where = LEASES.replace("{ns}", target.namespace)
    with target.as_user(token) as client:
        assert client.get(f"{where}/mine").status_code == 200
        refused = [
            (client.get(f"{where}/other"), 'leases.coordination.k8s.io "other"', "get", "leases"),
            (client.get(where), "leases.coordination.k8s.io", "list", "leases"),
            (client.post(where, json=lease("mine")), "leases.coordination.k8s.io", "create",
             "leases"),
            (client.delete(f"{where}/mine"), 'leases.coordination.k8s.io "mine"', "delete",
             "leases"),
            (client.get(f"{CLUSTERS.replace('{ns}', target.namespace)}/x/status"),
             'rayclusters.ray.io "x"', "get", "rayclusters/status"),
        ]  # fmt: skip
        for answer, what, verb, resource in refused:
            group = what.split(" ")[0].partition(".")[2]
            assert answer.status_code == 403, answer.text
            assert answer.json()["reason"] == "Forbidden"
            assert answer.json()["message"] == (
                f'{what} is forbidden: User "{user}" cannot {verb} resource "{resource}" in API '
                f'group "{group}" in the namespace "{target.namespace}"'
            )
        other = client.get("/apis/coordination.k8s.io/v1/namespaces/default/leases/mine")
        assert (other.status_code, other.json()["reason"]) == (403, "Forbidden")
        nodes = client.get("/api/v1/nodes").json()
        assert nodes["message"] == (
            f'nodes is forbidden: User "{user}" cannot list resource "nodes" in API group "" at '
            "the cluster scope"
        )
        review = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        for verb, may in (("patch", True), ("update", False)):
            wanted = {"verb": verb, "group": "coordination.k8s.io", "resource": "leases"}
            wanted |= {"name": "mine", "namespace": target.namespace}
            body = {
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SelfSubjectAccessReview",
                "spec": {"resourceAttributes": wanted},
            }
            answer = client.post(review, json=body)
            assert answer.status_code == 201, answer.text
            assert answer.json()["status"]["allowed"] is may


def test_a_token_of_nobody_is_refused(target):
    with target.as_user("nobody") as client:
        answer = client.get("/api/v1/namespaces/default/pods")
    assert answer.status_code == 401
    assert answer.json()["reason"] == "Unauthorized"


# -- watches --------------------------------------------------------------------------------------


def events(target, path, **query):
    """Return the events of a watch that ends by itself."""
    query = {"watch": "true", "timeoutSeconds": "1"} | query
    with target.client.stream("GET", path.replace("{ns}", target.namespace), params=query) as got:
        if got.status_code == 410:
            return [{"type": "ERROR", "object": json.loads(got.read())}]
        assert got.status_code == 200, got.read()
        return [json.loads(line) for line in got.iter_lines()]


def test_a_watch_sends_what_came_after_its_version(target, name):
    labels = {"of": name}
    path, query = f"{MAPS}/{name}", {"labelSelector": f"of={name}"}
    before = ok(target.send("GET", MAPS))["metadata"]["resourceVersion"]
    made = ok(target.send("POST", MAPS, config_map(name, labels=labels)))
    ok(target.send("PATCH", path, {"data": {"a": "2"}}, MERGE))
    ok(target.send("PATCH", path, {"metadata": {"labels": {"of": "x"}}}, MERGE))  # no match
    ok(target.send("PATCH", path, {"metadata": {"labels": labels}}, MERGE))
    ok(target.send("DELETE", path))
    seen = events(target, MAPS, resourceVersion=before, **query)
    expected = ["ADDED", "MODIFIED", "DELETED", "ADDED", "DELETED"]
    assert [event["type"] for event in seen] == expected
    versions = [int(event["object"]["metadata"]["resourceVersion"]) for event in seen]
    assert versions == sorted(set(versions))
    after = events(target, MAPS, resourceVersion=made["metadata"]["resourceVersion"], **query)
    assert [event["type"] for event in after] == expected[1:]


def test_a_watch_without_a_version_begins_with_what_is_there(target, name):
    ok(target.send("POST", MAPS, config_map(name, labels={"of": name})))
    seen = events(target, MAPS, labelSelector=f"of={name}")
    assert [event["type"] for event in seen] == ["ADDED"], seen
    assert seen[0]["object"]["metadata"]["name"] == name


def test_a_watch_of_a_forgotten_version_is_an_error_410(target):
    if target.server is not None:
        target.server.store.compact()
    [event] = events(target, MAPS, resourceVersion="1")
    assert event["type"] == "ERROR"
    status = event["object"]
    assert (status["kind"], status["code"]) == ("Status", 410)
    assert status["reason"] in {"Expired", "Gone"}
    assert "too old resource version" in status["message"]


# -- field ownership ------------------------------------------------------------------------------


def test_owners_of_an_update(target, name):
    made = ok(target.send("POST", LEASES, lease(name), fieldManager="one"))
    both = {"f:holderIdentity": {}, "f:leaseDurationSeconds": {}}
    assert owners(made) == {("one", "Update", ""): {"f:spec": both}}
    path = f"{LEASES}/{name}"
    other = ok(target.send("PATCH", path, {"spec": {"holderIdentity": "b"}}, MERGE,
                           fieldManager="two"))  # fmt: skip
    assert owners(other) == {
        ("one", "Update", ""): {"f:spec": {"f:leaseDurationSeconds": {}}},
        ("two", "Update", ""): {"f:spec": {"f:holderIdentity": {}}},
    }


def test_a_patch_of_the_managed_fields(target, name):
    """A client can remove its entry; without any entries, an object is no longer tracked."""
    ok(target.send("POST", LEASES, lease(name), fieldManager="one"))
    path = f"{LEASES}/{name}"
    two = {"spec": {"holderIdentity": "b"}}
    made = ok(target.send("PATCH", path, two, MERGE, fieldManager="two"))
    left = [entry for entry in made["metadata"]["managedFields"] if entry["manager"] != "two"]
    version = made["metadata"]["resourceVersion"]
    patch = [
        {"op": "test", "path": "/metadata/resourceVersion", "value": version},
        {"op": "replace", "path": "/metadata/managedFields", "value": left},
    ]
    given_up = ok(target.send("PATCH", path, patch, PATCH, fieldManager="two"))
    assert {manager for manager, *_ in owners(given_up)} == {"one"}
    assert target.send("PATCH", path, patch, PATCH, fieldManager="two").status_code == 422
    empty = [{"op": "replace", "path": "/metadata/managedFields", "value": []}]
    for patch, kind in ((empty, PATCH), ({"spec": {"holderIdentity": "c"}}, MERGE)):
        nobodys = ok(target.send("PATCH", path, patch, kind, fieldManager="two"))
        assert "managedFields" not in nobodys["metadata"]
    spec = lease(name, holderIdentity="d")
    refused = target.send("PATCH", path, spec, APPLY, fieldManager="helm")
    assert refused.json()["message"] == (
        'Apply failed with 1 conflict: conflict with "before-first-apply" using '
        "coordination.k8s.io/v1: .spec.holderIdentity"
    )
    forced = ok(target.send("PATCH", path, spec, APPLY, fieldManager="helm", force="true"))
    assert owners(forced) == {
        ("helm", "Apply", ""): {"f:spec": {"f:holderIdentity": {}, "f:leaseDurationSeconds": {}}},
        ("before-first-apply", "Update", ""): {"f:spec": {"f:leaseDurationSeconds": {}}},
    }


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        pytest.param(None, {LEASES, CLUSTERS}, id="null"),
        pytest.param([], {CLUSTERS}, id="empty"),
        pytest.param([{}], set(), id="reset"),
    ],
)
@pytest.mark.parametrize("path", [LEASES, CLUSTERS])
def test_managed_fields_are_emptied(target, name, path, sent, kept):
    body = lease(name) if path == LEASES else cluster(name)
    ok(target.send("POST", path, body, fieldManager="one"))
    patch = {"metadata": {"managedFields": sent}}
    made = ok(target.send("PATCH", f"{path}/{name}", patch, MERGE, fieldManager="two"))
    managers = {e["manager"] for e in made["metadata"].get("managedFields", ())}
    assert ("one" in managers) is (path in kept)


def test_apply_takes_gives_up_and_conflicts(target, name):
    path = f"{MAPS}/{name}"

    def applied(manager, force="false", **data):
        body = Target.head("v1", "ConfigMap", name, data=data)
        return target.send("PATCH", path, body, APPLY, fieldManager=manager, force=force)

    made = ok(applied("one", a="1", b="1"))
    assert owners(made) == {("one", "Apply", ""): {"f:data": {"f:a": {}, "f:b": {}}}}
    again = ok(applied("one", a="1", b="1"))
    assert again["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]
    shared = ok(applied("two", a="1"))
    assert owners(shared)["two", "Apply", ""] == {"f:data": {"f:a": {}}}
    refused = applied("two", a="2", b="2")
    assert refused.status_code == 409
    assert refused.json()["reason"] == "Conflict"
    assert refused.json()["message"] == (
        'Apply failed with 2 conflicts: conflicts with "one":\n- .data.a\n- .data.b'
    )
    causes = refused.json()["details"]["causes"]
    assert causes == [
        {"reason": "FieldManagerConflict", "message": 'conflict with "one"', "field": ".data.a"},
        {"reason": "FieldManagerConflict", "message": 'conflict with "one"', "field": ".data.b"},
    ]
    forced = ok(applied("two", "true", a="2"))
    assert owners(forced)["one", "Apply", ""] == {"f:data": {"f:b": {}}}
    less = ok(applied("one", c="3"))
    assert less["data"] == {"a": "2", "c": "3"}  # b had no other owner
    last = ok(applied("one"))
    assert last["data"] == {"a": "2"}


def test_an_update_takes_from_an_applier(target, name):
    """As KubeRay's finalizer did: a full update that writes an atomic list in another form."""
    path = f"{CLUSTERS}/{name}"
    body = cluster(name)
    ok(target.send("PATCH", path, body, APPLY, fieldManager="helm"))
    live = ok(target.send("GET", path))
    live["metadata"]["finalizers"] = ["example.com/finalizer"]
    live["spec"]["workerGroupSpecs"][0]["scaleStrategy"] = {}
    put = target.send("PUT", path, live, fieldManager="operator")
    if put.status_code == 409:  # a real operator wrote its status in between
        version = ok(target.send("GET", path))["metadata"]["resourceVersion"]
        live["metadata"]["resourceVersion"] = version
        put = target.send("PUT", path, live, fieldManager="operator")
    fields = owners(ok(put))
    assert fields["operator", "Update", ""] == {
        "f:metadata": {"f:finalizers": {".": {}, 'v:"example.com/finalizer"': {}}},
        "f:spec": {"f:workerGroupSpecs": {}},
    }
    assert "f:workerGroupSpecs" not in fields["helm", "Apply", ""]["f:spec"]
    refused = target.send("PATCH", path, body, APPLY, fieldManager="helm")
    assert refused.status_code == 409
    assert refused.json()["message"] == (
        'Apply failed with 1 conflict: conflict with "operator" using ray.io/v1: '
        ".spec.workerGroupSpecs"
    )
    body["spec"]["workerGroupSpecs"] = live["spec"]["workerGroupSpecs"]
    same = target.send("PATCH", path, body, APPLY, fieldManager="helm")
    assert same.status_code == 200, same.text
    ok(target.send("PATCH", path, {"metadata": {"finalizers": None}}, MERGE))


def test_lists_with_keys_have_an_owner_for_each_item(target, name):
    where = "/apis/apps/v1/namespaces/{ns}/deployments"
    body = deployment(name)
    container = body["spec"]["template"]["spec"]["containers"][0]
    container["env"] = [{"name": "A", "value": "1"}, {"name": "B", "value": "1"}]
    container["ports"] = [{"containerPort": 80}]
    made = ok(target.send("PATCH", f"{where}/{name}", body, APPLY, fieldManager="helm"))
    env = {
        f'k:{{"name":"{key}"}}': {".": {}, "f:name": {}, "f:value": {}} for key in ("A", "B")
    }  # fmt: skip
    fields = owners(made)["helm", "Apply", ""]["f:spec"]["f:template"]["f:spec"]["f:containers"]
    assert fields == {
        'k:{"name":"c"}': {
            ".": {},
            "f:name": {},
            "f:image": {},
            "f:env": env,
            "f:ports": {
                'k:{"containerPort":80,"protocol":"TCP"}': {".": {}, "f:containerPort": {}}
            },
        }
    }
    more = {"name": "c", "env": [{"name": "C", "value": "1"}]}
    patch = {"spec": {"template": {"spec": {"containers": [more]}}}}
    added = ok(target.send("PATCH", f"{where}/{name}", patch, STRATEGIC, fieldManager="other"))
    names = [e["name"] for e in added["spec"]["template"]["spec"]["containers"][0]["env"]]
    assert sorted(names) == ["A", "B", "C"]
    container["env"] = [{"name": "A", "value": "1"}]
    less = ok(target.send("PATCH", f"{where}/{name}", body, APPLY, fieldManager="helm"))
    names = [e["name"] for e in less["spec"]["template"]["spec"]["containers"][0]["env"]]
    assert sorted(names) == ["A", "C"]
    container["env"] = [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]
    twice = target.send("PATCH", f"{where}/{name}", body, APPLY, fieldManager="helm")
    assert twice.status_code == 500, twice.text
    assert 'duplicate entries for key [name="A"]' in twice.json()["message"]


def test_a_strategic_patch_deletes_and_orders(target, name):
    where = "/apis/apps/v1/namespaces/{ns}/deployments"
    body = deployment(name)
    container = body["spec"]["template"]["spec"]["containers"][0]
    container["env"] = [{"name": key, "value": "1"} for key in "ABC"]
    ok(target.send("POST", where, body))
    env = [{"name": "B", "$patch": "delete"}, {"name": "D", "value": "1"}]
    order = [{"name": key} for key in "DCA"]
    change = {"name": "c", "env": env, "$setElementOrder/env": order}
    patch = {"spec": {"template": {"spec": {"containers": [change]}}}}
    done = ok(target.send("PATCH", f"{where}/{name}", patch, STRATEGIC))
    names = [e["name"] for e in done["spec"]["template"]["spec"]["containers"][0]["env"]]
    assert names == ["D", "C", "A"]


def test_a_request_without_a_token_has_no_rights(target):
    """The fake and a cluster with anonymous requests answer 403, one without them 401."""
    with httpx.Client(verify=False, trust_env=False, timeout=PATIENCE) as client:
        answer = client.get(f"{str(target.client.base_url).rstrip('/')}/api/v1/nodes")
    assert answer.status_code in {401, 403}
