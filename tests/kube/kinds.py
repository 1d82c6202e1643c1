"""The kinds of objects that the fake serves, with their schemas.

Built-in kinds come from the JSON schemas of Kubernetes in ``kubernetes_validate``; custom ones from
the CustomResourceDefinitions in tests/helm/crds. The schema of a RayCluster's
``spec`` is that of ``rayClusterConfig`` in a RayService (the same Go type, ``RayClusterSpec``).
"""

import functools
import gzip
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.kube.schemas import Schema

VERSION = "1.36"
"""Kubernetes version that the fake reports and whose schemas it uses."""
CRDS = Path(__file__).resolve().parents[1] / "helm" / "crds"

_BUILT_IN = """
v1 Namespace namespaces cluster status finalize
v1 Node nodes cluster status
v1 PersistentVolume persistentvolumes cluster status
v1 Pod pods namespaced status eviction binding
v1 Service services namespaced status
v1 ServiceAccount serviceaccounts namespaced
v1 ConfigMap configmaps namespaced
v1 Secret secrets namespaced
v1 Event events namespaced
v1 Endpoints endpoints namespaced
v1 PersistentVolumeClaim persistentvolumeclaims namespaced status
v1 LimitRange limitranges namespaced
v1 ResourceQuota resourcequotas namespaced status
apps/v1 Deployment deployments namespaced status scale
apps/v1 ReplicaSet replicasets namespaced status scale
apps/v1 StatefulSet statefulsets namespaced status scale
apps/v1 DaemonSet daemonsets namespaced status
batch/v1 Job jobs namespaced status
batch/v1 CronJob cronjobs namespaced status
coordination.k8s.io/v1 Lease leases namespaced
discovery.k8s.io/v1 EndpointSlice endpointslices namespaced
rbac.authorization.k8s.io/v1 Role roles namespaced
rbac.authorization.k8s.io/v1 RoleBinding rolebindings namespaced
rbac.authorization.k8s.io/v1 ClusterRole clusterroles cluster
rbac.authorization.k8s.io/v1 ClusterRoleBinding clusterrolebindings cluster
networking.k8s.io/v1 NetworkPolicy networkpolicies namespaced
networking.k8s.io/v1 Ingress ingresses namespaced status
policy/v1 PodDisruptionBudget poddisruptionbudgets namespaced status
autoscaling/v2 HorizontalPodAutoscaler horizontalpodautoscalers namespaced status
scheduling.k8s.io/v1 PriorityClass priorityclasses cluster
storage.k8s.io/v1 StorageClass storageclasses cluster
resource.k8s.io/v1 ResourceClaimTemplate resourceclaimtemplates namespaced
resource.k8s.io/v1 DeviceClass deviceclasses cluster
"""
_PLURALS = {"HTTPRoute": "httproutes", "GRPCRoute": "grpcroutes"}
_UNCONDITIONAL = {"leases": False}
"""Whether a PUT without a resourceVersion is accepted; built-in kinds not listed accept it."""

_COUNTED = {"apps", "batch", "policy", "networking.k8s.io"}
"""Groups whose objects have a generation."""


@dataclass(frozen=True, eq=False)
class Kind:
    """A kind in one version of its API group."""

    group: str
    version: str
    kind: str
    plural: str
    namespaced: bool
    schema: Schema
    custom: bool = False
    subresources: tuple[str, ...] = ()

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def resource(self) -> str:
        """Name in error messages: ``leases.coordination.k8s.io``."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def has_status(self) -> bool:
        return "status" in self.subresources

    @property
    def counted(self) -> bool:
        """Whether its objects have a generation."""
        return self.custom or self.group in _COUNTED or self.plural == "pods"

    @property
    def unconditional(self) -> bool:
        """Whether a PUT may omit the resourceVersion."""
        return not self.custom and _UNCONDITIONAL.get(self.plural, True)

    @property
    def create_by_put(self) -> bool:
        """Whether a PUT creates a missing object (AllowCreateOnUpdate)."""
        return self.plural in {"leases", "events", "endpoints"}

    def __repr__(self):
        return f"<{self.resource}>"


class Kinds:
    """The kinds of one server; ``add`` adds one."""

    def __init__(self):
        self._known: list[Kind] = []
        for kind in (*_built_in(), *_custom()):
            self.add(kind)

    def add(self, kind: Kind) -> None:
        self._known.append(kind)

    def __iter__(self):
        return iter(self._known)

    def find(self, group: str, version: str, plural: str) -> Kind | None:
        """Return the kind at a path, or None."""
        wanted = (group, version, plural)
        return next((k for k in self._known if (k.group, k.version, k.plural) == wanted), None)

    def of(self, item: dict[str, Any]) -> Kind:
        """Return the kind of an object.

        Raises:
            KeyError: The server has no such kind.
        """
        wanted = (item.get("apiVersion"), item.get("kind"))
        found = next((k for k in self._known if (k.api_version, k.kind) == wanted), None)
        if found is None:
            raise KeyError(f"no kind {wanted}")
        return found

    def named(self, plural: str) -> Kind:
        """Return the one kind with this plural."""
        [found] = [kind for kind in self._known if kind.plural == plural]
        return found


@functools.cache
def _definitions() -> dict[str, Any]:
    package = importlib.util.find_spec("kubernetes_validate")
    assert package is not None
    assert package.origin is not None
    folder = Path(package.origin).parent / "kubernetes-json-schema" / f"v{VERSION}.0-local-strict"
    loaded: dict[str, Any] = json.loads((folder / "_definitions.json").read_text("utf-8"))
    return loaded["$defs"]


@functools.cache
def _built_in() -> tuple[Kind, ...]:
    definitions = _definitions()
    names = {
        (kind["group"], kind["version"], kind["kind"]): name
        for name, schema in definitions.items()
        for kind in schema.get("x-kubernetes-group-version-kind", ())
    }
    found = []
    for line in _BUILT_IN.split("\n"):
        if not line:
            continue
        api_version, kind, plural, scope, *subresources = line.split()
        group, _, version = api_version.rpartition("/")
        schema = Schema(definitions[names[group, version, kind]], definitions)
        found.append(
            Kind(
                group, version, kind, plural, scope == "namespaced", schema,
                subresources=tuple(subresources),
            )
        )  # fmt: skip
    return tuple(found)


@functools.cache
def _custom() -> tuple[Kind, ...]:
    found = []
    for file in sorted(CRDS.glob("*.json.gz")):
        resource = json.loads(gzip.decompress(file.read_bytes()))
        schema = resource["schema"]
        found.append(custom_kind(resource["apiVersion"], resource["kind"], schema))
        if resource["kind"] == "RayService":
            properties = schema["properties"]
            spec = properties["spec"]["properties"]["rayClusterConfig"]
            status = properties["status"]["properties"]["activeServiceStatus"]["properties"]
            cluster = schema | {
                "properties": properties | {"spec": spec, "status": status["rayClusterStatus"]}
            }
            found.append(custom_kind(resource["apiVersion"], "RayCluster", cluster))
    return tuple(found)


def custom_kind(api_version: str, kind: str, schema: dict[str, Any], plural: str = "") -> Kind:
    """Return the kind of a CustomResourceDefinition with ``schema`` (openAPIV3Schema)."""
    group, version = api_version.split("/")
    metadata = {"$ref": "#/$defs/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"}
    properties = schema["properties"] | {
        "metadata": metadata,
        "apiVersion": {"type": "string"},
        "kind": {"type": "string"},
    }
    status = ("status",) if "status" in properties else ()
    return Kind(
        group, version, kind, plural or _PLURALS.get(kind, f"{kind.lower()}s"), True,
        Schema(schema | {"properties": properties}, _definitions()),
        custom=True, subresources=status,
    )  # fmt: skip
