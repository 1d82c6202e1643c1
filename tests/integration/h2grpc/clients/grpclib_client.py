"""grpclib."""

import ssl
from typing import Any
from urllib.parse import urlsplit

from google.rpc import error_details_pb2  # noqa: F401  grpclib decodes what is known
from google.rpc.status_pb2 import Status
from grpclib.client import (
    Channel,
    StreamStreamMethod,
    StreamUnaryMethod,
    UnaryStreamMethod,
    UnaryUnaryMethod,
)
from grpclib.exceptions import GRPCError

from tests.integration.h2grpc.clients.common import Call, Client, Outcome, main

KINDS = {
    "unary_unary": UnaryUnaryMethod,
    "unary_stream": UnaryStreamMethod,
    "stream_unary": StreamUnaryMethod,
    "stream_stream": StreamStreamMethod,
}


class Grpclib(Client):
    """grpclib's streams, for all kinds of calls."""

    def open(self) -> Any:
        address = urlsplit(f"//{self.target['address']}")
        context = None
        if self.tls is not None:
            context = ssl.create_default_context(cafile=self.tls["ca"])
            context.set_alpn_protocols(["h2"])
            if "cert" in self.tls:
                context.load_cert_chain(self.tls["cert"], self.tls["key"])
        return Channel(address.hostname, address.port, ssl=context)

    async def close(self, channel: Any) -> None:
        channel.close()

    async def perform(self, channel: Any, call: Call, outcome: Outcome) -> None:
        method = KINDS[call.kind](channel, call.path, call.request_class, call.answer_class)
        stream = method.open(timeout=call.timeout, metadata=call.metadata)
        details: list[tuple[str, bytes]] = []
        try:
            async with stream:
                await self._talk(stream, call, outcome)
        except GRPCError as error:
            outcome.code, outcome.details = error.status.name, error.message or ""
            if error.details:
                details.append(("grpc-status-details-bin", _status(error)))
        except TimeoutError:
            outcome.code, outcome.details = "DEADLINE_EXCEEDED", "of the client"
        if call.cancel_after is None:
            initial, trailing = stream.initial_metadata, stream.trailing_metadata
            outcome.keep(
                () if initial is None else initial.items(),
                (*(() if trailing is None else trailing.items()), *details),
            )

    async def _talk(self, stream: Any, call: Call, outcome: Outcome) -> None:
        async def read() -> bool:
            message = await stream.recv_message()
            if message is not None:
                outcome.got(message)
            return message is not None

        await stream.send_request()
        for number, request in enumerate(call.requests):
            await stream.send_message(request)
            if call.lockstep:
                for _ in range(call.answers[number]):
                    await read()
            if call.cancel_after is not None and len(outcome.replies) >= call.cancel_after:
                await stream.cancel()
                outcome.code, outcome.details = "CANCELLED", "of the client"
                return
        if not call.unfinished:
            await stream.end()
        while await read():
            pass
        await stream.recv_trailing_metadata()


def _status(error: GRPCError) -> bytes:
    """Return the google.rpc.Status from the parts that grpclib parsed."""
    status = Status(code=error.status.value, message=error.message)
    for each in error.details:
        status.details.add().Pack(each)
    return status.SerializeToString()


if __name__ == "__main__":
    main(Grpclib)
