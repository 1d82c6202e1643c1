"""grpc.aio."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from tests.integration.h2grpc.clients.common import Call, Client, Outcome

OPTIONS = [("grpc.use_local_subchannel_pool", 1)]


def credentials(tls: dict[str, str] | None) -> grpc.ChannelCredentials | None:
    """Return the credentials of a target; None: plain text."""
    if tls is None:
        return None
    return grpc.ssl_channel_credentials(
        Path(tls["ca"]).read_bytes(),
        Path(tls["key"]).read_bytes() if "key" in tls else None,
        Path(tls["cert"]).read_bytes() if "cert" in tls else None,
    )


class GrpcAio(Client):
    """Calls of grpc.aio, written and read as objects."""

    def open(self) -> Any:
        given = credentials(self.tls)
        if given is None:
            return grpc.aio.insecure_channel(self.target["address"], options=OPTIONS)
        return grpc.aio.secure_channel(self.target["address"], given, options=OPTIONS)

    async def close(self, channel: Any) -> None:
        await channel.close()

    async def perform(self, channel: Any, call: Call, outcome: Outcome) -> None:
        method = getattr(channel, call.kind)(
            call.path, call.request_class.SerializeToString, call.answer_class.FromString
        )
        made = method(
            *(() if call.streams_up else call.requests),
            timeout=call.timeout,
            metadata=call.metadata,
            compression=grpc.Compression.Gzip if call.compressed else None,
        )
        try:
            await self._talk(made, call, outcome)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass  # the other error: a write after the end of the call
        except asyncio.CancelledError:
            if not made.cancelled():
                raise
        outcome.code = (await made.code()).name
        outcome.details = await made.details() or ""
        if call.cancel_after is None:
            outcome.keep(await made.initial_metadata(), await made.trailing_metadata())

    async def _talk(self, made: Any, call: Call, outcome: Outcome) -> None:
        async def read() -> bool:
            message = await (made.read() if call.kind.endswith("stream") else made)
            if message is not grpc.aio.EOF:
                outcome.got(message)
            return message is not grpc.aio.EOF

        if call.streams_up:
            await self._send(made, call, outcome, read)
        if call.kind.endswith("unary"):
            await read()
        else:
            while await read():
                pass

    async def _send(self, made: Any, call: Call, outcome: Outcome, read: Any) -> None:
        for number, request in enumerate(call.requests):
            await made.write(request)
            for _ in range(call.answers[number] if call.lockstep else 0):
                await read()
            if call.cancel_after is not None and len(outcome.replies) >= call.cancel_after:
                made.cancel()
        if not call.unfinished:
            await made.done_writing()
