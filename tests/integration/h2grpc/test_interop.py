"""gRPC's interop cases: real clients, the same servicer on this server and on grpc.aio's.

Each client must end each call in the same way on both servers, and as the case specifies. It runs
as a program (in this process if it is grpcio) that makes all calls of all cases to six targets:
both servers in plain text, with TLS, and with TLS and client certificates.
"""

import asyncio
import contextlib
import json
import logging
import os
from base64 import b64decode
from dataclasses import asdict
from pathlib import Path

import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from tests.clients import installed
from tests.integration.h2grpc.cases import ANY_FAILURE, OF_THE_CLIENT
from tests.integration.h2grpc.clients import common, grpcio_aio, grpcio_sync
from tests.integration.h2grpc.targets import Targets
from tests.support.waiting import PATIENCE

HERE = Path(__file__).parent
SMALL = 20_000
"""Maximum size of a call on the wire if its large messages are compressed, bytes."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def targets(tmp_path_factory):
    logging.getLogger("grpc._cython.cygrpc").setLevel(logging.CRITICAL)
    started = Targets(tmp_path_factory.mktemp("interop"))
    await started.start()
    with capture_logs():  # handlers that raise; their tracebacks cost seconds
        yield started
    await started.stop()


CLIENTS = {
    "grpcio": grpcio_sync.Grpcio,
    "grpcio-aio": grpcio_aio.GrpcAio,
    "grpclib": "grpclib_client",
    "connectrpc": "connectrpc_client",
    "grpc-js": "grpc_js.cjs",
    "nice-grpc": "nice_grpc.cjs",
    "connect-node": "connect_node.cjs",
}
COMPRESSES_NOTHING = {"grpclib"}
OF_THE_CLIENT_LIBRARY = {
    ("nice-grpc", "deadline_seen_by_the_server"): "it enforces deadlines in the client only",
    ("connect-node", "metadata_with_an_error"): "its errors merge initial and trailing metadata",
}
"""Deviations from the cases on both servers."""
_UNARY = "grpc.aio ignores set_compression in unary methods"
_SPACES = "grpc-js splits grpc-accept-encoding at commas only; grpc.aio adds spaces after them"
_UNREADABLE = "doc/compression.md; grpc.aio compresses for clients that accept no compression"
DIFFERENT = {
    **{(client, "server_compressed_unary"): _UNARY for client in CLIENTS if client != "grpclib"},
    **{
        (client, case): _SPACES
        for client in ("grpc-js", "nice-grpc")
        for case in ("client_compressed_unary", "client_compressed_streaming")
    },
    ("grpclib", "server_compressed_streaming"): _UNREADABLE,
    ("grpclib", "server_compressed_streaming_in_part"): _UNREADABLE,
}
"""Deviations of only grpc.aio's server."""


async def outcomes_of(client, spec, targets):
    """Return the results of a client, by target and case."""
    if not isinstance(client, str):
        return await common.run(client, spec, targets.messages)
    environment = "node" if client.endswith(".cjs") else "main"
    if missing := installed.why_not(environment):
        pytest.skip(f"not run: {missing}")
    if environment == "node":
        program = [installed.NODE, HERE / "clients" / "node" / client]
    else:
        program = [
            installed.python(environment),
            "-m",
            f"tests.integration.h2grpc.clients.{client}",
        ]
    process = await asyncio.create_subprocess_exec(
        *program,
        cwd=installed.ROOT,
        env=os.environ | {"NODE_PATH": str(installed.NODE_MODULES)},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(PATIENCE):
            said, errors = await process.communicate(json.dumps(spec).encode())
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    assert process.returncode == 0, errors.decode()[-4000:]
    return json.loads(said)


def problems(targets, case, outcomes, *, compresses: bool) -> list[str]:
    """Return the deviations from a case."""
    texts = []
    wire = []
    for (call, end), outcome in zip(case.steps, outcomes, strict=True):
        if call["method"] == "WireBytes":
            answer = b64decode(outcome["replies"][0])
            told = targets.messages.WireBytesResponse.FromString(answer)
            wire.append((told.received, told.sent))
            continue
        if end.code == ANY_FAILURE:
            if outcome["code"] == "OK":
                texts.append(f"{call['method']} succeeded")
            continue
        wanted = json.loads(json.dumps(asdict(end)))
        got = json.loads(json.dumps(outcome))
        if isinstance(got, dict) and (end.details is None or end.code in OF_THE_CLIENT):
            got["details"] = None if got["details"] else "no details"
            wanted["details"] = None
        if got != wanted:
            texts.append(f"{call['method']} ended with {got}, expected {wanted}")
    for way, compressed in enumerate(case.compressed):
        if compressed is None:
            continue
        carried = wire[1][way] - wire[0][way]
        if (carried < SMALL) != (compressed and compresses):
            texts.append(f"{('up', 'down')[way]} there were {carried} bytes")
    return texts


def deviations(found, targets, client) -> list[str]:
    """Return deviations that are not listed, and listed ones that do not occur."""
    texts = []
    for target, ended in found.items():
        server = target.split()[0]
        for name, outcomes in ended.items():
            known = (client, name)
            compresses = client not in COMPRESSES_NOTHING
            wrong = problems(targets, targets.cases[name], outcomes, compresses=compresses)
            if known in OF_THE_CLIENT_LIBRARY or (known in DIFFERENT and server == "grpc.aio"):
                if not wrong:
                    texts.append(f"{target}, {name}: passes, but is listed as different")
            else:
                texts += [f"{target}, {name}: {text}" for text in wrong]
    for client_, name in OF_THE_CLIENT_LIBRARY:
        if client_ == client and found["ours plain"][name] != found["grpc.aio plain"][name]:
            texts.append(f"{name}: differs between the servers")
    return texts


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("client", CLIENTS)
async def test_interop(targets, client):
    spec = {
        "descriptors": str(targets.descriptors),
        "targets": targets.specs,
        "cases": {name: [call for call, _ in case.steps] for name, case in targets.cases.items()},
    }
    found = await outcomes_of(CLIENTS[client], spec, targets)
    await targets.idle()
    texts = deviations(found, targets, client)
    assert not texts, "\n".join(texts)
