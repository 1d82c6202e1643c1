"""An API server over real HTTP on a loopback port, in a thread.

``with KubeServer() as server:`` serves from its own thread, so that tests with and without asyncio,
Helm, and other processes use it alike. ``server.api`` and ``server.store`` change its objects
without HTTP; ``server.requests`` has the requests; ``server.faults`` injects faults.
"""

import asyncio
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import yaml
from aiohttp import web

from tests.kube import discovery, evictions, patches, rbac, reviews, selectors, watching
from tests.kube.answers import list_of, refusal, success
from tests.kube.api import Api, Options, Place
from tests.kube.errors import ApiError, forbidden, no_such_path
from tests.kube.faults import Faults, Seen
from tests.kube.kinds import Kind
from tests.kube.paths import addressed, resource_at
from tests.kube.store import Store
from tests.support.waiting import PATIENCE

Item = dict[str, Any]
_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch"}


class KubeServer:
    """An API server with its objects, which persist across ``stop`` and ``start``."""

    def __init__(self, namespaces: tuple[str, ...] = ("default", "kube-system")):
        self.store = Store()
        self.api = Api(self.store)
        self.requests: list[Seen] = []
        """All requests in order, watches included."""
        self.faults = Faults()
        self.watches = watching.Watches(self.store)
        self.controlling = threading.Lock()
        """Held during a pass of controllers: concurrent passes would create objects twice."""
        self.host = "127.0.0.1"
        self.port = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stop: asyncio.Event | None = None
        self._transports: set[Any] = set()
        for name in namespaces:
            self.namespace(name)

    # -- for tests --------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def namespace(self, name: str) -> None:
        """Create a namespace."""
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        self.api.create(self.store.kinds.named("namespaces"), "", body, Options())

    def create(self, item: Item, manager: str = "test") -> Item:
        """Create an object, including its status, with all checks; return it."""
        kind = self.store.kinds.of(item)
        namespace = item["metadata"].get("namespace", "default") if kind.namespaced else ""
        options = Options(manager=manager, validation="Strict")
        with self.store.lock:
            made = self.api.create(kind, namespace, item, options)
            if not kind.has_status or "status" not in item:
                return made
            place = Place(kind, made["metadata"]["name"], namespace)
            status = {**made, "status": item["status"]}
            return self.api.update(place, status, Options(manager, subresource="status"))[0]

    def get(self, plural: str, name: str, namespace: str = "default") -> Item | None:
        """Return a copy of an object, or None."""
        return self.store.peek(plural, name, namespace)

    def items(
        self, plural: str, namespace: str = "", where: Callable[[Item], bool] | None = None
    ) -> list[Item]:
        """Return copies of the objects of a kind for which ``where`` is true."""
        return self.store.peek_all(plural, namespace, where)

    def view(
        self, plural: str, namespace: str = "", where: Callable[[Item], bool] | None = None
    ) -> list[Item]:
        """Return the objects uncopied, for controllers, which read all of them repeatedly."""
        return self.store.view(self.store.kinds.named(plural), namespace, where)

    def patch(
        self, plural: str, name: str, patch: Item, namespace: str = "default", **more: Any
    ) -> Item:
        """Apply a JSON merge patch as the field manager ``manager``."""
        kind = self.store.kinds.named(plural)
        place = Place(kind, name, namespace if kind.namespaced else "")
        return self.api.patch(place, patch, patches.MERGE, Options(**{"manager": "test", **more}))

    def delete(
        self, plural: str, name: str, namespace: str = "default", grace: int | None = None
    ) -> None:
        """Delete an object; pods on a node stay for their grace period unless ``grace`` is 0."""
        kind = self.store.kinds.named(plural)
        place = Place(kind, name, namespace if kind.namespaced else "")
        self.api.delete(place, {"gracePeriodSeconds": grace}, Options())

    def configuration(self, token: str = rbac.ADMIN_TOKEN) -> Any:
        """Return a configuration of the official asynchronous client."""
        from kubernetes.aio import client

        made = client.Configuration(host=self.url)
        made.api_key["BearerToken"] = f"Bearer {token}"
        return made

    def kubeconfig(
        self, file: Path, token: str = rbac.ADMIN_TOKEN, namespace: str | None = None
    ) -> Path:
        """Write a kubeconfig and return its path.

        The server's address contains the token too: kubectl and Helm send none over plain HTTP.
        """
        context = {"cluster": "fake", "user": "user"}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "fake",
            "clusters": [{"name": "fake", "cluster": {"server": f"{self.url}/as/{token}"}}],
            "users": [{"name": "user", "user": {"token": token}}],
            "contexts": [
                {
                    "name": "fake",
                    "context": context | ({"namespace": namespace} if namespace else {}),
                }
            ],
        }
        file.write_text(yaml.safe_dump(content), "utf-8")
        return file

    def drop(self) -> None:
        """Cut all connections, watches among them."""
        self._in_loop(self._drop)

    # -- life -------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen, on the same port as before if it was stopped."""
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((self.host, self.port))
        self.port = listening.getsockname()[1]
        ready = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(listening, ready)), name="kube", daemon=True
        )
        self._thread.start()
        assert ready.wait(PATIENCE), "the fake API server did not start"

    def stop(self) -> None:
        """Become unreachable: close the port and all connections. Objects are kept."""
        if self._thread is None:
            return
        assert self._loop is not None
        assert self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the fake API server did not stop"
        self._thread = None

    async def _serve(self, listening: socket.socket, ready: threading.Event) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self.watches.attach(self._loop)
        # No routes: paths are read here. A watch ends with its client.
        server = web.Server(self._handle, handler_cancellation=True)
        runner = web.ServerRunner(server, handle_signals=False, shutdown_timeout=0.0)
        await runner.setup()
        await web.SockSite(runner, listening).start()
        ready.set()
        await self._stop.wait()
        self._drop()
        self.watches.detach()
        await runner.cleanup()

    def _in_loop(self, call: Any) -> None:
        done = threading.Event()
        assert self._loop is not None
        self._loop.call_soon_threadsafe(lambda: (call(), done.set()))
        assert done.wait(PATIENCE), "the fake API server does not answer"

    def _drop(self) -> None:
        for transport in [*self._transports]:
            transport.abort()

    # -- requests ---------------------------------------------------------------------------------

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        transport = request.transport
        self._transports.add(transport)
        try:
            return await self._answer(request)
        finally:
            self._transports.discard(transport)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        token, path = addressed(request)
        acts_as = request.headers.get("Impersonate-User")
        seen = Seen(
            request.method, path, dict(request.query), request.content_type, body,
            request.headers.get("User-Agent", ""),
        )  # fmt: skip
        self.requests.append(seen)
        try:
            fault = self.faults.of(seen)
            if fault is not None:
                answer = await fault.answer(request, self._stop)
                if answer is not None:
                    return answer
            user = self._user(token, acts_as)
            if (found := discovery.page(self.store.kinds, seen)) is not None:
                return web.json_response(found)
            if (found := reviews.answer(self.store, seen, user)) is not None:
                return web.json_response(found, status=201)
            return await self._resource(request, seen, user)
        except ApiError as error:
            return refusal(error)

    def _user(self, token: str | None, acts_as: str | None) -> rbac.User:
        user = rbac.user_of(token, self.store)
        if user is None:
            raise ApiError(401, "Unauthorized")
        return user if acts_as is None else rbac.impersonated(self.store, user, acts_as)

    async def _resource(
        self, request: web.BaseRequest, seen: Seen, user: rbac.User
    ) -> web.StreamResponse:
        kind, namespace, name, subresource = resource_at(self.store.kinds, seen.path)
        watch = request.query.get("watch") in {"true", "1"}
        verb = _VERBS.get(request.method) or {
            "GET": "get" if name else "watch" if watch else "list",
            "DELETE": "delete" if name else "deletecollection",
        }.get(request.method, request.method.lower())
        resource = f"{kind.plural}/{subresource}" if subresource else kind.plural
        if not rbac.allowed(self.store, user, verb, kind.group, resource, namespace, name):
            raise forbidden(user.name, verb, kind, namespace, name, subresource)
        if subresource and subresource not in kind.subresources:
            raise no_such_path()
        if verb == "watch":
            return await self.watches.serve(request, kind, namespace)
        if verb == "get":
            return web.json_response(self.store.get(kind, name, namespace))
        if verb == "list":
            return web.json_response(self._list(request, kind, namespace))
        options = self._options(request, subresource)
        place = Place(kind, name, namespace)
        status, content = self._write(verb, place, seen, options)
        answer = web.json_response(content, status=status)
        for warning in options.warnings:
            answer.headers.add("Warning", f'299 - "{warning}"'.replace('\\"', '"'))
        return answer

    def _write(self, verb: str, place: Place, seen: Seen, options: Options) -> tuple[int, Item]:
        kind, namespace = place.kind, place.namespace
        if verb == "create":
            if place.name:
                return 201, self._create_below(place, seen, options)
            return 201, self.api.create(kind, namespace, seen.parsed(), options)
        if verb == "update":
            item, new = self.api.update(place, seen.parsed(), options)
            return (201 if new else 200), item
        if verb == "patch":
            if seen.content_type in patches.APPLY:
                item, new = self.api.apply(place, seen.parsed(), options)
                return (201 if new else 200), item
            return 200, self.api.patch(place, seen.parsed(), seen.content_type, options)
        if verb == "delete":
            item, deleted = self.api.delete(place, seen.parsed(), options)
            if deleted and kind.plural not in {"pods", "services", "namespaces"}:
                return 200, success(kind, item)
            return 200, item
        if verb == "deletecollection":
            items = self._selected(seen.query, kind, namespace)
            for item in items:
                metadata = item["metadata"]
                one = Place(kind, metadata["name"], metadata.get("namespace", ""))
                self.api.delete(one, seen.parsed(), options)
            return 200, list_of(kind, items, self.store.revision)
        raise ApiError(405, "the server does not allow this method on the requested resource")

    def _create_below(self, place: Place, seen: Seen, options: Options) -> Item:
        """Handle a POST to a subresource: an eviction, or a binding of a pod to a node."""
        body = seen.parsed() or {}
        if options.subresource == "eviction":
            evictions.evict(self.api, place, body, options)
        elif options.subresource == "binding":
            with self.store.lock:
                pod = self.store.get(place.kind, place.name, place.namespace)
                pod["spec"]["nodeName"] = body["target"]["name"]
                self.store.put(place.kind, pod)
        else:
            raise ApiError(405, "the server does not allow this method on the requested resource")
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Success",
            "code": 201,
        }

    @staticmethod
    def _options(request: web.BaseRequest, subresource: str) -> Options:
        query = request.query
        agent = request.headers.get("User-Agent", "unknown").partition("/")[0]
        return Options(
            manager=query.get("fieldManager") or agent,
            given_manager=bool(query.get("fieldManager")),
            validation=query.get("fieldValidation", ""),
            dry_run=query.get("dryRun") == "All",
            force=query.get("force") in {"true", "1"},
            subresource=subresource,
        )

    def _selected(self, query: dict[str, str], kind: Kind, namespace: str) -> list[Item]:
        by_label = selectors.label_test(query.get("labelSelector", ""))
        by_field = selectors.field_test(query.get("fieldSelector", ""), kind.plural)
        return self.store.all(kind, namespace, lambda item: by_label(item) and by_field(item))

    def _list(self, request: web.BaseRequest, kind: Kind, namespace: str) -> Item:
        with self.store.lock:
            items = self._selected(dict(request.query), kind, namespace)
            found = list_of(kind, items, self.store.revision)
        limit, start = int(request.query.get("limit") or 0), 0
        if token := request.query.get("continue"):
            version, _, at = token.partition("-")
            if int(version) < self.store.oldest:
                message = "The provided continue parameter is too old to display a consistent list"
                raise ApiError(410, message)
            start = int(at)
        if limit and len(items) > start + limit:
            found["metadata"]["continue"] = f"{self.store.revision}-{start + limit}"
            found["metadata"]["remainingItemCount"] = len(items) - start - limit
        found["items"] = items[start : start + limit] if limit else items[start:]
        return found
