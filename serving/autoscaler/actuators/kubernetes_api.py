"""The API server through the official client: bounded calls, backoff, errors of ours.

Retried: throttling (429, after as long as it asks), server errors, time-outs, lost connections.
Not retried here: conflicts, since the caller must read again first (``kubernetes_errors``).

Every PATCH names its content type. The client's own choice is merge-patch, which a server refuses
for a list of operations (400); and a JSON patch that is no list it would silently send as a
strategic merge.
"""

import asyncio
import copy
import http
import os
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
from kubernetes.aio import client, config
from kubernetes.aio.client.exceptions import ApiException

from serving.autoscaler.actuators.actuator import ActuatorError
from serving.autoscaler.actuators.kubernetes_errors import MOST_BACKOFF, NotThere, check_final
from serving.errors import SettingsError
from serving.settings import KubernetesSettings

_FIRST_BACKOFF = 0.25
_JSON_PATCH = "application/json-patch+json"

FIELD_MANAGER = "moe-serving-autoscaler"
"""Who an object's managed fields say wrote what is written here."""


class KubernetesApi:
    """One API server."""

    def __init__(
        self,
        settings: KubernetesSettings,
        configuration: Any,
        *,
        pause: Callable[[float], Awaitable[object]] = asyncio.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """Talk to the server of ``configuration``; ``pause`` waits, ``chance`` jitters."""
        self._settings = settings
        self._client = client.ApiClient(configuration)
        self._custom = client.CustomObjectsApi(self._client)
        self._core = client.CoreV1Api(self._client)
        self._pause = pause
        self._chance = chance

    def bounded(self, timeout: float, attempts: int) -> "KubernetesApi":
        """Return the same server with the same connections for calls of other patience.

        Args:
            timeout: seconds that the server may take for an answer.
            attempts: tries of one call.
        """
        other = copy.copy(self)
        limits = {"api_timeout": timeout, "attempts": attempts}
        other._settings = self._settings.model_copy(update=limits)  # noqa: SLF001  its own class
        return other

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()  # type: ignore[no-untyped-call]

    async def get(self, group: str, plural: str, name: str) -> dict[str, Any]:
        """Return an object of an API group (``group/version``) in the settings' namespace.

        Raises:
            NotThere: there is none.
            ActuatorError: the server does not answer or refuses.
        """
        found: dict[str, Any] = await self._call(
            f"get {plural} {name}",
            lambda: self._custom.get_namespaced_custom_object(
                *self._path(group, plural), name, _request_timeout=self._timeout
            ),
        )
        return found

    async def create(self, group: str, plural: str, body: dict[str, Any]) -> None:
        """Create an object.

        Raises:
            Conflict: there is one of that name already.
            ActuatorError: as for ``get``.
        """
        await self._call(
            f"create {plural}",
            lambda: self._custom.create_namespaced_custom_object(
                *self._path(group, plural),
                body,
                field_manager=FIELD_MANAGER,
                _request_timeout=self._timeout,
            ),
        )

    async def patch(
        self, group: str, plural: str, name: str, patch: list[dict[str, Any]]
    ) -> dict[str, Any]:
        """Apply a JSON patch (RFC 6902) and return the object as it is then.

        Its ``test`` operations make it compare and swap; so does an operation that sets
        ``/metadata/resourceVersion`` to the one that was read.

        Raises:
            Conflict: a test failed, or the version is another one by now.
            Invalid: the object would not be valid.
            ActuatorError: as for ``get``.
        """
        changed: dict[str, Any] = await self._call(
            f"patch {plural} {name}",
            lambda: self._custom.patch_namespaced_custom_object(
                *self._path(group, plural),
                name,
                list(patch),
                field_manager=FIELD_MANAGER,
                _content_type=_JSON_PATCH,
                _request_timeout=self._timeout,
            ),
        )
        return changed

    async def may(self, verb: str, group: str, plural: str, name: str = "") -> bool:
        """Return whether this account has a right in the settings' namespace, by its own review.

        Args:
            verb: such as "patch".
            group: API group, with or without version; empty: core.
            plural: the resource; nodes belong to no namespace.
            name: of one object; empty: of any.

        Raises:
            ActuatorError: the server does not say.
        """
        where = "" if plural == "nodes" else self._settings.namespace
        resource = {
            "verb": verb,
            "group": group.partition("/")[0],
            "resource": plural,
            "name": name,
            "namespace": where,
        }
        body = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": resource},
        }
        review = await self._call(
            f"ask whether it may {verb} {plural}",
            lambda: self._custom.create_cluster_custom_object(
                "authorization.k8s.io",
                "v1",
                "selfsubjectaccessreviews",
                body,
                _request_timeout=self._timeout,
            ),
        )
        status = review.get("status") if isinstance(review, dict) else None
        if not isinstance(status, dict) or "allowed" not in status:
            raise NotThere("Kubernetes: no answer to a SelfSubjectAccessReview")
        return bool(status["allowed"])

    async def pods(self, selector: str) -> list[Any]:
        """Return the pods of the namespace with these labels.

        Raises:
            ActuatorError: as for ``get``.
        """
        found = await self._call(
            "list pods",
            lambda: self._core.list_namespaced_pod(
                self._settings.namespace, label_selector=selector, _request_timeout=self._timeout
            ),
        )
        return list(found.items)

    async def listed(self, plural: str, selector: str = "") -> tuple[list[Any], str]:
        """Return the cluster's "nodes" or the namespace's "pods", and the version of that state.

        Raises:
            ActuatorError: as for ``get``.
        """
        call, where = self._lister(plural)
        found = await self._call(
            f"list {plural}",
            lambda: call(**where, label_selector=selector, _request_timeout=self._timeout),
        )
        return list(found.items), str(found.metadata.resource_version)

    async def opened(self, plural: str, **query: Any) -> Any:
        """Return the HTTP answer to a watch over the same objects, whose body is the events.

        Raises:
            ApiException: its status is not 200. (The client's own watch looks at no status.)
        """
        call, where = self._lister(plural, raw=True)
        async with asyncio.timeout(self._timeout):
            answer = await call(**where, **query)
            if answer.status == http.HTTPStatus.OK:
                return answer
            error = ApiException(answer.status, answer.reason, body=await answer.text())
            error.headers = answer.headers
            raise error

    def _lister(self, plural: str, *, raw: bool = False) -> tuple[Any, dict[str, str]]:
        """Return the client's call that lists or watches, and where; raw: as HTTP answers."""
        name = "list_node" if plural == "nodes" else "list_namespaced_pod"
        where = {} if plural == "nodes" else {"namespace": self._settings.namespace}
        return getattr(self._core, f"{name}_without_preload_content" if raw else name), where

    @property
    def _timeout(self) -> float:
        return float(self._settings.api_timeout)

    def _path(self, group: str, plural: str) -> tuple[str, str, str, str]:
        name, version = group.split("/")
        return name, version, self._settings.namespace, plural

    async def _call(self, what: str, call: Callable[[], Awaitable[Any]]) -> Any:
        backoff = _FIRST_BACKOFF
        cause: Exception
        for attempt in range(1, self._settings.attempts + 1):
            try:
                # The client's own time-out does not cover all that it does.
                async with asyncio.timeout(self._timeout):
                    return await call()
            except ApiException as error:
                asked = check_final(what, error)
                reason, cause = f"{error.status} {error.reason}", error
            except (TimeoutError, aiohttp.ClientError, OSError) as error:
                asked, reason, cause = 0.0, type(error).__name__, error
            if attempt == self._settings.attempts:
                raise ActuatorError(
                    f"Kubernetes: {what} failed {attempt} times, at last with {reason}"
                ) from cause
            # Full jitter from half: several autoscalers must not come back together.
            await self._pause(max(asked, backoff * (0.5 + self._chance() / 2)))
            backoff = min(2 * backoff, MOST_BACKOFF)
        raise AssertionError("the last attempt returns or raises")


async def cluster_configuration() -> Any:
    """Return how the API server is reached: from inside a pod, else as kubectl does.

    Raises:
        SettingsError: neither is there.
    """
    configuration = client.Configuration()  # without retries of its own
    try:
        config.load_incluster_config(  # type: ignore[no-untyped-call]
            client_configuration=configuration
        )
    except config.ConfigException:
        try:
            await config.load_kube_config(  # type: ignore[no-untyped-call]
                config_file=os.environ.get("KUBECONFIG"), client_configuration=configuration
            )
        except config.ConfigException as error:
            raise SettingsError(
                "no cluster is configured: run in a pod with a service account, or set KUBECONFIG"
            ) from error
    return configuration


def current_namespace(pods_own: Path) -> str:
    """Return the pod's own namespace, as its service account's file says, or that of kubectl's
    current context, or "default".
    """
    with suppress(OSError):
        return pods_own.read_text("utf-8").strip()
    with suppress(config.ConfigException):
        _, current = config.list_kube_config_contexts(  # type: ignore[no-untyped-call]
            os.environ.get("KUBECONFIG")
        )
        return str(current["context"].get("namespace") or "default")
    return "default"
