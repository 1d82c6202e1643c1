"""Receiver of vLLM's KV-cache events over ZMQ; updates the mirror of the prefix cache."""

import asyncio
import logging

import msgspec
import zmq
import zmq.asyncio
from vllm.config import VllmConfig
from vllm.config.kv_events import KVEventsConfig
from vllm.distributed.kv_events import AllBlocksCleared, BlockRemoved, BlockStored, KVEventBatch

from serving.engine.core.client import CoreClient
from serving.engine.kv_mirror import KvMirror
from serving.link.block_hashes import ROOT, adapter_root

_log = logging.getLogger(__name__)

_SOCKET = "inproc-kv"
"""Name of the socket. vLLM appends the rank only to addresses that contain "inproc", and rejects
other ipc addresses for the ranks of a group."""
_QUEUE = 10_000
"""Maximum number of queued batches on either side. Excess batches are lost; the receiver detects
the gap in their sequence numbers."""
_PARTS = 3
"""Number of parts of a message: topic, sequence number, events."""

_decoder = msgspec.msgpack.Decoder(KVEventBatch)


def publish_kv_events(config: VllmConfig, folder: str) -> None:
    """Enable KV-cache events over ZMQ in the configuration of an engine with prefix caching.

    Args:
        config: Modified in place; an existing ``kv_events_config`` is kept.
        folder: Folder for the socket; it must be private, because events contain prompts.

    """
    if config.cache_config.enable_prefix_caching and config.kv_events_config is None:
        config.kv_events_config = KVEventsConfig(
            enable_kv_cache_events=True,
            publisher="zmq",
            endpoint=f"ipc://{folder}/{_SOCKET}",
            buffer_steps=1,  # replays are never requested
            hwm=_QUEUE,
            max_queue_size=_QUEUE,
        )


class KvSource:
    """Receives one engine's events and updates its mirror."""

    def __init__(self, endpoint: str, mirror: KvMirror) -> None:
        """Create the source without connecting; see :meth:`start`.

        Args:
            endpoint: ZMQ address of the engine's publisher.
            mirror: Mirror to update.
        """
        self.mirror = mirror
        self._endpoint = endpoint
        self._next = 0
        self._task: asyncio.Task[None] | None = None

    @classmethod
    def of(cls, core: CoreClient) -> "KvSource | None":
        """Return the source of a started engine, or ``None`` if it publishes nothing over ZMQ."""
        cache = core.vllm_config.cache_config
        published = [
            source.endpoint
            for source in core.get_kv_event_sources().values()
            if source.publisher == "zmq"
        ]
        if not cache.enable_prefix_caching or not published:
            return None
        endpoint = published[0].replace("*", "127.0.0.1")
        return cls(endpoint, KvMirror(cache.block_size, 2 * (cache.num_gpu_blocks or 0)))

    def start(self) -> None:
        """Start listening. Call before the first request: vLLM reports each block only once."""
        self._task = asyncio.create_task(self._listen())

    async def stop(self) -> None:
        """Stop listening. Safe to call twice."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _listen(self) -> None:
        with zmq.asyncio.Context() as context, context.socket(zmq.SUB) as socket:
            socket.setsockopt(zmq.LINGER, 0)
            socket.set_hwm(_QUEUE)
            socket.subscribe(b"")
            socket.connect(self._endpoint)
            while True:
                self.receive(await socket.recv_multipart())

    def receive(self, parts: list[bytes]) -> None:
        """Apply one message. An unreadable message or a sequence gap clears the mirror first."""
        try:
            if len(parts) != _PARTS:
                raise ValueError(f"{len(parts)} parts instead of {_PARTS}")  # noqa: TRY301
            batch = _decoder.decode(parts[2])
        except (msgspec.MsgspecError, ValueError) as error:
            _log.warning("unreadable KV-cache event, clearing the mirror: %s", error)
            self.mirror.cleared()
            self._next += 1
            return
        number = int.from_bytes(parts[1], "big")
        if number != self._next:
            _log.warning("KV-cache events %d to %d were lost", self._next, number - 1)
            self.mirror.cleared()
        self._next = number + 1
        for event in batch.events:
            self._apply(event)

    def _apply(self, event: BlockStored | BlockRemoved | AllBlocksCleared) -> None:
        if isinstance(event, AllBlocksCleared):
            self.mirror.cleared()
        elif isinstance(event, BlockRemoved):
            # Only the first KV-cache group of a model with several attention types is mirrored.
            if not event.group_idx:
                self.mirror.removed(event.block_hashes)
        elif self._plain(event):
            # The name that vLLM knows is the adapter's key.
            root = ROOT if event.lora_name is None else adapter_root(event.lora_name)
            self.mirror.stored(event.block_hashes, event.parent_block_hash, event.token_ids, root)

    def _plain(self, event: BlockStored) -> bool:
        """Return whether the blocks are complete and identified by tokens and adapter alone."""
        size = self.mirror.block_size
        keys = () if event.lora_name is None else (event.lora_name,)
        return (
            not event.group_idx
            and event.block_size == size
            and len(event.token_ids) == size * len(event.block_hashes)
            and all(tuple(each or ()) == keys for each in event.extra_keys or ())
        )
