"""The blocking gRPC client: answers, cancellation, errors."""

import grpc
import pytest

from serving import errors
from serving.api.v1 import inference_pb2
from serving.client.chat import Delta, GenerateOptions
from serving.client.grpc import GrpcClient
from tests.support.waiting import PATIENCE
from tests.unit.client.fake_routers import Inference, asked, grpc_router


def test_streams_reasoning_and_content():
    servicer = Inference()
    with grpc_router(servicer) as target:
        request = asked(("user", "1+1?"), ("assistant", "2"))
        options = GenerateOptions("pocket-r1", temperature=0.5)
        deltas = list(GrpcClient(target).generate(request, options))
    assert deltas == [Delta(reasoning="hm"), Delta("2")]
    (request,) = servicer.requests
    assert request.model == "pocket-r1"
    assert [m.role for m in request.messages] == [
        inference_pb2.ROLE_USER,
        inference_pb2.ROLE_ASSISTANT,
    ]
    assert request.sampling.temperature == 0.5
    assert not request.sampling.HasField("max_tokens")


def test_closing_the_stream_cancels_the_call():
    servicer = Inference(endless=True)
    with grpc_router(servicer) as target:
        stream = GrpcClient(target).generate(asked(("user", "x")), GenerateOptions("m"))
        assert next(stream) == Delta(reasoning="hm")
        stream.close()
        assert servicer.ended.wait(PATIENCE)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, errors.InvalidRequest),
        (grpc.StatusCode.NOT_FOUND, errors.ModelNotFound),
        (grpc.StatusCode.UNAVAILABLE, errors.NotReady),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.Overloaded),
        (grpc.StatusCode.UNIMPLEMENTED, errors.Unsupported),
        (grpc.StatusCode.INTERNAL, errors.EngineError),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_errors_keep_the_servers_words(code, expected):
    with grpc_router(Inference(code)) as target:
        stream = GrpcClient(target).generate(asked(("user", "x")), GenerateOptions("m"))
        with pytest.raises(expected, match="its own words"):
            list(stream)
