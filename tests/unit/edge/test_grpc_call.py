"""What holds for every RPC, whatever it does."""

import asyncio

from serving.clock import SystemClock
from serving.edge.gate import Gate
from serving.edge.grpc_call import CallRunner
from serving.fleet.caller import caller_var


class Context:
    """As much of gRPC's as a call needs."""

    def __init__(self):
        self.aborted = []

    def invocation_metadata(self):
        return ()

    async def send_initial_metadata(self, metadata):
        pass

    def time_remaining(self):
        return 5.0

    def cancelled(self):
        return False

    async def abort(self, *status):
        self.aborted.append(status)
        raise RuntimeError("aborted")


async def test_a_stream_whose_client_left_is_closed_from_another_context():
    """gRPC drops the generator; the loop closes it in a task, and so in a context, of its own."""
    seen, context, gate = [], Context(), Gate()

    async def answers(call):
        seen.append(caller_var.get())
        try:
            yield 1
        finally:
            seen.append("closed")

    stream = CallRunner(gate, "m", SystemClock()).stream("ChatStream", context, answers)
    assert await anext(stream) == 1
    assert gate.inflight == 1
    await asyncio.create_task(stream.aclose())
    assert (seen[0].tenant, seen[1]) == ("anonymous", "closed")
    assert gate.inflight == 0
    assert context.aborted == []
