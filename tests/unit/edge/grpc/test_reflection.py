"""Reflection by both names, with grpc_reflection's own servicer on grpc.aio as the oracle."""

import grpc
import grpc.aio
import pytest
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection_pb2 as pb
from grpc_reflection.v1alpha._async import ReflectionServicer
from grpc_reflection.v1alpha.reflection_pb2_grpc import add_ServerReflectionServicer_to_server

from serving.edge.grpc.reflection import V1, V1ALPHA, add_reflection
from serving.edge.grpc.server import SERVICES
from serving.h2grpc.server import Server
from tests.unit.h2grpc.conftest import bound_socket

METHOD = "ServerReflectionInfo"
ALL = [
    pb.ServerReflectionRequest(list_services=""),
    pb.ServerReflectionRequest(host="elsewhere", list_services="*"),
    pb.ServerReflectionRequest(file_by_filename="serving/api/v1/inference.proto"),
    pb.ServerReflectionRequest(file_by_filename="no/such.proto"),
    pb.ServerReflectionRequest(file_by_filename=""),
    pb.ServerReflectionRequest(file_containing_symbol="serving.api.v1.InferenceService"),
    pb.ServerReflectionRequest(file_containing_symbol="serving.api.v1.InferenceService.No"),
    pb.ServerReflectionRequest(file_containing_symbol="serving.api.v1.ChatRequest"),
    pb.ServerReflectionRequest(file_containing_symbol="serving.api.v1.ChatRequest.messages"),
    pb.ServerReflectionRequest(file_containing_symbol=V1),
    pb.ServerReflectionRequest(file_containing_symbol=V1ALPHA),
    pb.ServerReflectionRequest(file_containing_symbol="no.such.Symbol"),
    pb.ServerReflectionRequest(file_containing_symbol=".serving.api.v1.ChatRequest"),
    pb.ServerReflectionRequest(
        file_containing_extension=pb.ExtensionRequest(
            containing_type="google.protobuf.MessageOptions", extension_number=7
        )
    ),
    pb.ServerReflectionRequest(
        file_containing_extension=pb.ExtensionRequest(
            containing_type="no.such.Type", extension_number=-1
        )
    ),
    pb.ServerReflectionRequest(all_extension_numbers_of_type="serving.api.v1.ChatRequest"),
    pb.ServerReflectionRequest(all_extension_numbers_of_type="no.such.Type"),
    pb.ServerReflectionRequest(),
]


@pytest.fixture
async def ours():
    server = Server()
    add_reflection(SERVICES, server)
    port = await server.start(bound_socket())
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(0)


@pytest.fixture
async def theirs():
    server = grpc.aio.server()
    add_ServerReflectionServicer_to_server(ReflectionServicer(SERVICES), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(0)


async def answers(channel, service, requests=ALL):
    call = channel.stream_stream(
        f"/{service}/{METHOD}",
        request_serializer=pb.ServerReflectionRequest.SerializeToString,
        response_deserializer=pb.ServerReflectionResponse.FromString,
    )(iter(requests))
    return [answer async for answer in call]


@pytest.mark.parametrize("service", [V1, V1ALPHA])
async def test_answers_are_those_of_grpc_aio(ours, theirs, service):
    expected = await answers(theirs, V1ALPHA)
    assert await answers(ours, service) == expected
    assert len(expected) == len(ALL)


async def test_every_service_that_is_listed_can_be_described(ours):
    (listed,) = await answers(ours, V1, ALL[:1])
    names = [each.name for each in listed.list_services_response.service]
    assert {V1, V1ALPHA} <= set(names)
    asked = [pb.ServerReflectionRequest(file_containing_symbol=name) for name in names]
    for name, answer in zip(names, await answers(ours, V1, asked), strict=True):
        files = [
            descriptor_pb2.FileDescriptorProto.FromString(each)
            for each in answer.file_descriptor_response.file_descriptor_proto
        ]
        described = {f"{file.package}.{each.name}" for file in files for each in file.service}
        assert name in described
        in_package = {
            f".{file.package}.{each.name}" for file in files for each in file.message_type
        }
        for file in files:
            for service in file.service:
                for method in service.method:
                    assert {method.input_type, method.output_type} <= in_package


async def test_methods_are_found_as_the_protocol_says(ours):
    """grpc_reflection does not find them."""
    names = ("serving.api.v1.InferenceService", "serving.api.v1.InferenceService.Chat")
    asked = [pb.ServerReflectionRequest(file_containing_symbol=name) for name in names]
    of_service, of_method = await answers(ours, V1, asked)
    assert of_method.file_descriptor_response == of_service.file_descriptor_response
    assert of_method.original_request == asked[1]
    assert of_method.file_descriptor_response.file_descriptor_proto


async def test_v1_is_v1alpha_but_for_its_name(ours):
    names = ("grpc.reflection.v1.ServerReflectionRequest", V1ALPHA)
    asked = [pb.ServerReflectionRequest(file_containing_symbol=name) for name in names]
    texts = []
    for answer in await answers(ours, V1, asked):
        (raw,) = answer.file_descriptor_response.file_descriptor_proto
        file = descriptor_pb2.FileDescriptorProto.FromString(raw)
        file.ClearField("name")
        texts.append(str(file))
    assert "v1alpha" not in texts[0]
    assert texts[0] == texts[1].replace("v1alpha", "v1")
