"""Calls to the API server through the official client, with timeouts, retries and typed errors.

Retried: throttling (429, honouring Retry-After), server errors, timeouts and lost connections. Not
retried: conflicts, because the caller must read the object again first (``kubernetes_errors``).

Every PATCH sets its content type. By default, the client sends a list of operations as a merge
patch, which the server rejects (400), and silently sends any other body as a strategic merge patch.
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
from serving.autoscaler.actuators.kubernetes_errors import MOST_BACKOFF, NotFound, raise_if_final
from serving.errors import SettingsError
from serving.settings import KubernetesSettings

_FIRST_BACKOFF = 0.25
_JSON_PATCH = "application/json-patch+json"

FIELD_MANAGER = "moe-serving-autoscaler"
"""Field manager of all writes, as recorded in an object's managed fields."""


class KubernetesApi:
    """Client of one API server."""

    def __init__(
        self,
        settings: KubernetesSettings,
        configuration: Any,
        *,
        pause: Callable[[float], Awaitable[object]] = asyncio.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """Connect with ``configuration``; ``pause`` sleeps, ``chance`` returns jitter (0 to 1)."""
        self._settings = settings
        self._client = client.ApiClient(configuration)
        self._custom = client.CustomObjectsApi(self._client)
        self._core = client.CoreV1Api(self._client)
        self._pause = pause
        self._chance = chance

    def bounded(self, timeout: float, attempts: int) -> "KubernetesApi":
        """Return a client with the same connections but different limits.

        Args:
            timeout: Timeout of one attempt, seconds.
            attempts: Maximum number of attempts per call.
        """
        other = copy.copy(self)
        limits = {"api_timeout": timeout, "attempts": attempts}
        other._settings = self._settings.model_copy(update=limits)  # noqa: SLF001  the same class
        return other

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()  # type: ignore[no-untyped-call]

    async def get(self, group: str, plural: str, name: str) -> dict[str, Any]:
        """Return an object of an API group (``group/version``) in the configured namespace.

        Raises:
            NotFound: The object does not exist.
            ActuatorError: The server does not respond or rejects the request.
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
            Conflict: An object of that name exists.
            ActuatorError: As for ``get``.
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
        """Apply a JSON patch (RFC 6902) and return the patched object.

        ``test`` operations turn it into a compare-and-swap, as does an operation that sets
        ``/metadata/resourceVersion`` to the version that was read.

        Raises:
            Conflict: A test failed, or the object has another version.
            Invalid: The patched object would be invalid.
            ActuatorError: As for ``get``.
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
        """Return whether this account has a permission, by a SelfSubjectAccessReview.

        Args:
            verb: RBAC verb, such as "patch".
            group: API group, with or without version; empty for the core group.
            plural: Resource in the configured namespace, or "nodes" (not namespaced).
            name: Name of one object; empty for all objects.

        Raises:
            ActuatorError: The server does not respond or does not support the review.
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
            f"check the permission to {verb} {plural}",
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
            raise NotFound("Kubernetes: no status in the response to a SelfSubjectAccessReview")
        return bool(status["allowed"])

    async def pods(self, selector: str) -> list[Any]:
        """Return the pods in the configured namespace that match a label selector.

        Raises:
            ActuatorError: As for ``get``.
        """
        found = await self._call(
            "list pods",
            lambda: self._core.list_namespaced_pod(
                self._settings.namespace, label_selector=selector, _request_timeout=self._timeout
            ),
        )
        return list(found.items)

    async def listed(self, plural: str, selector: str = "") -> tuple[list[Any], str]:
        """List the cluster's "nodes" or the namespace's "pods".

        Returns:
            The objects and the resource version of the list.

        Raises:
            ActuatorError: As for ``get``.
        """
        call, where = self._lister(plural)
        found = await self._call(
            f"list {plural}",
            lambda: call(**where, label_selector=selector, _request_timeout=self._timeout),
        )
        return list(found.items), str(found.metadata.resource_version)

    async def opened(self, plural: str, **query: Any) -> Any:
        """Open a watch on the objects of ``listed``; the response body contains the events.

        Raises:
            ApiException: The status is not 200. (The client's own watch ignores the status.)
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
        """Return the client's list method and namespace; ``raw`` leaves the response undecoded."""
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
                # The client's timeout does not cover all of its work.
                async with asyncio.timeout(self._timeout):
                    return await call()
            except ApiException as error:
                retry_after = raise_if_final(what, error)
                reason, cause = f"{error.status} {error.reason}", error
            except (TimeoutError, aiohttp.ClientError, OSError) as error:
                retry_after, reason, cause = 0.0, type(error).__name__, error
            if attempt == self._settings.attempts:
                raise ActuatorError(
                    f"Kubernetes: {what} failed {attempt} times; last error: {reason}"
                ) from cause
            # Jitter between half and all of the backoff: autoscalers must not retry in step.
            await self._pause(max(retry_after, backoff * (0.5 + self._chance() / 2)))
            backoff = min(2 * backoff, MOST_BACKOFF)
        raise AssertionError("the last attempt returns or raises")


async def cluster_configuration() -> Any:
    """Return the client configuration of the pod's service account, or of kubectl.

    Raises:
        SettingsError: Neither is available.
    """
    configuration = client.Configuration()  # without the client's retries
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
    """Return the namespace of this pod or of kubectl's current context, or "default".

    Args:
        pods_own: Path of the service account's namespace file.
    """
    with suppress(OSError):
        return pods_own.read_text("utf-8").strip()
    with suppress(config.ConfigException):
        _, current = config.list_kube_config_contexts(  # type: ignore[no-untyped-call]
            os.environ.get("KUBECONFIG")
        )
        return str(current["context"].get("namespace") or "default")
    return "default"
