"""Nodes and pods with versions, and watches over them as an API server has them, served by kmock.

kmock's own watch knows no versions: it sends everything again each time.
"""

import asyncio
import copy

from kmock import Response


class Kind:
    """The objects of one kind, and what happened to them."""

    def __init__(self):
        self.items = {}
        self.events = []
        self.oldest = 0
        """Changes up to this version are forgotten."""
        self.lists = 0
        self.watches = []
        """Query of each watch that was asked for."""
        self.refusal = None
        """(status, message) of every watch; None: they are served."""
        self.answer = None
        """Lines instead of events, and then the end."""
        self.mute = False
        """Watches are accepted and never say or end anything."""


class ClusterFake:
    """What ``kmock`` has of nodes and of the namespace's pods."""

    def __init__(self, kmock):
        self.version = 100
        self.nodes = Kind()
        self.pods = Kind()
        self._news = asyncio.Event()
        self._open = set()
        for path, kind in (
            ("/api/v1/nodes", self.nodes),
            ("/api/v1/namespaces/default/pods", self.pods),
        ):
            kmock[f"get {path}"] << self._handler(kind)

    def put(self, kind, name, **content):
        """Create or replace an object."""
        self.version += 1
        metadata = {"name": name, "resourceVersion": str(self.version)}
        metadata |= content.pop("metadata", {})
        known = name in kind.items
        kind.items[name] = {"metadata": metadata, **content}
        self._happened(kind, "MODIFIED" if known else "ADDED", kind.items[name])

    def node(self, name, **spec):
        self.put(self.nodes, name, spec=spec)

    def pod(self, name, ip, node, *, cluster="moe", deleted=False, **status):
        metadata = {"labels": {"ray.io/cluster": cluster, "ray.io/group": "ranks"}}
        if deleted:
            metadata["deletionTimestamp"] = "2026-11-23T00:00:00Z"
        self.put(
            self.pods,
            name,
            metadata=metadata,
            spec={"nodeName": node, "containers": [{"name": "ray"}]},
            status={"podIP": ip, "phase": "Running", **status},
        )

    def delete(self, kind, name):
        self.version += 1
        item = kind.items.pop(name)
        item["metadata"]["resourceVersion"] = str(self.version)
        self._happened(kind, "DELETED", item)

    def bookmark(self, kind):
        self.version += 1
        self._happened(kind, "BOOKMARK", {"metadata": {"resourceVersion": str(self.version)}})

    def forget(self, kind):
        """Forget all changes (as etcd's compaction does)."""
        kind.oldest = self.version
        kind.events.clear()

    def drop(self):
        """Cut all connections of watches."""
        for transport in self._open:
            transport.abort()

    async def watched(self, kind, times=1):
        """Wait until so many watches were asked for."""
        async with asyncio.timeout(20):
            while len(kind.watches) < times:  # noqa: ASYNC110  bounded above
                await asyncio.sleep(0.01)

    def _happened(self, kind, what, item):
        kind.events.append((self.version, {"type": what, "object": copy.deepcopy(item)}))
        self._news.set()
        self._news = asyncio.Event()

    def _handler(self, kind):
        def handle(request):
            # kmock keeps a status for what follows: each answer has its own.
            status, payload = handled(request)
            return Response(status=status, payload=payload)

        def handled(request):
            if request.params.get("watch") != "true":
                kind.lists += 1
                metadata = {"resourceVersion": str(self.version)}
                items = copy.deepcopy([*kind.items.values()])
                return 200, {"metadata": metadata, "items": items}
            kind.watches.append(request.params)
            if kind.refusal is not None:
                status, message = kind.refusal
                return status, {"kind": "Status", "code": status, "message": message}
            return 200, self._watch(kind, request)

        return handle

    async def _watch(self, kind, request):
        transport = request._raw_request.transport
        self._open.add(transport)
        try:
            yield b""  # the headers
            if kind.answer is not None:
                for line in kind.answer:
                    yield line
                return
            since = int(request.params["resourceVersion"])
            if since < kind.oldest:
                status = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}
                yield {"type": "ERROR", "object": status}
                return
            try:
                async with asyncio.timeout(int(request.params["timeoutSeconds"])):
                    while not transport.is_closing():
                        news = self._news
                        for version, event in list(kind.events):
                            if version > since and not kind.mute:
                                since = version
                                yield event
                        await news.wait()
            except TimeoutError:
                while kind.mute and not transport.is_closing():  # noqa: ASYNC110  has no event
                    await asyncio.sleep(0.05)
        finally:
            self._open.discard(transport)
