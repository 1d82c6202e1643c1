"""The reference of the gRPC API, from the .proto files and their comments."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pb2 import (
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)
from grpc_tools import protoc

from deploy.docs.generate.markdown import prose, table
from serving.edge.auth.authenticator import rpc_permission

ROOT = Path(__file__).resolve().parents[3]
FILES = (
    "serving/api/v1/inference.proto",
    "serving/api/v1/fleet.proto",
    "serving/api/v1/usage.proto",
    "serving/api/v1/batch.proto",
)

_HEAD = """\
# gRPC API

Package `serving.api.v1`, on the router's gRPC port (`router.grpc_port`, 50051 by default), with
server reflection and `grpc.health.v1`. Python stubs are in `serving.api.v1`; for other languages
generate them from [proto](../../../proto).
[errors.md](../errors.md) lists the status codes, [security.md](../security.md) the permissions.

This page is generated from the .proto files.
"""
# Field numbers in descriptor.proto that form the path to a comment.
_MESSAGE, _ENUM, _SERVICE = 4, 5, 6
_FIELD, _NESTED, _NESTED_ENUM, _VALUE, _METHOD = 2, 3, 4, 2, 2
_PACKAGE = ".serving.api.v1."


class _File:
    """One .proto file: its descriptor and its comments by path."""

    def __init__(self, descriptor: FileDescriptorProto) -> None:
        self.descriptor = descriptor
        self._comments = {
            tuple(item.path): item.leading_comments for item in descriptor.source_code_info.location
        }

    def comment(self, *path: int) -> str:
        """Return the comment in front of a definition as one line."""
        return prose(self._comments.get(path, ""))

    def introduction(self) -> str:
        """Return the comment at the top of the file."""
        syntax = (12,)
        for item in self.descriptor.source_code_info.location:
            if tuple(item.path) == syntax:
                return prose(" ".join((*item.leading_detached_comments, item.leading_comments)))
        return ""

    def services(self) -> Iterator[str]:
        """Yield a section for each service."""
        for index, service in enumerate(self.descriptor.service):
            yield f"\n## {service.name}\n\n{self.introduction()}\n"
            if text := self.comment(_SERVICE, index):
                yield f"\n{text}\n"
            rows = []
            for number, method in enumerate(service.method):
                answer = _link(method.output_type)
                name = f"/{self.descriptor.package}.{service.name}/{method.name}"
                rows.append(
                    (
                        f"`{method.name}`",
                        _link(method.input_type),
                        f"stream of {answer}" if method.server_streaming else answer,
                        rpc_permission(name).value,
                        self.comment(_SERVICE, index, _METHOD, number),
                    )
                )
            yield "\n" + table(("method", "request", "response", "needs", "description"), rows)

    def types(self) -> Iterator[str]:
        """Yield a section for each message and enum."""
        for index, message in enumerate(self.descriptor.message_type):
            yield from self._message(message, message.name, (_MESSAGE, index))
        for index, enum in enumerate(self.descriptor.enum_type):
            yield from self._enum(enum, enum.name, (_ENUM, index))

    def _message(self, message: Any, name: str, path: tuple[int, ...]) -> Iterator[str]:
        yield f"\n### {name}\n"
        if text := self.comment(*path):
            yield f"\n{text}\n"
        maps = {
            f"{_PACKAGE}{name}.{each.name}": each
            for each in message.nested_type
            if each.options.map_entry
        }
        rows = []
        for index, field in enumerate(message.field):
            kind = _type(field, maps)
            if field.HasField("oneof_index") and not field.proto3_optional:
                kind += f" (one of `{message.oneof_decl[field.oneof_index].name}`)"
            rows.append(
                (
                    f"`{field.name}`",
                    str(field.number),
                    kind,
                    self.comment(*path, _FIELD, index),
                )
            )
        if rows:
            yield "\n" + table(("field", "number", "type", "description"), rows)
        else:
            yield "\nNo fields.\n"
        for index, nested in enumerate(message.nested_type):
            if not nested.options.map_entry:
                yield from self._message(nested, f"{name}.{nested.name}", (*path, _NESTED, index))
        for index, enum in enumerate(message.enum_type):
            yield from self._enum(enum, f"{name}.{enum.name}", (*path, _NESTED_ENUM, index))

    def _enum(self, enum: Any, name: str, path: tuple[int, ...]) -> Iterator[str]:
        yield f"\n### {name}\n"
        if text := self.comment(*path):
            yield f"\n{text}\n"
        rows = [
            (f"`{value.name}`", str(value.number), self.comment(*path, _VALUE, index))
            for index, value in enumerate(enum.value)
        ]
        yield "\n" + table(("value", "number", "description"), rows)


def page() -> str:
    """Return the page."""
    files = [_File(each) for each in _descriptors()]
    services = "".join(part for each in files for part in each.services())
    types = "".join(part for each in files for part in each.types())
    return f"{_HEAD}{services}\n## Messages\n{types}"


def _descriptors() -> list[FileDescriptorProto]:
    with tempfile.NamedTemporaryFile() as out:
        code = protoc.main(
            [
                "protoc",
                f"-I{ROOT / 'proto'}",
                "--include_source_info",
                f"--descriptor_set_out={out.name}",
                *FILES,
            ]
        )
        if code:
            raise RuntimeError("protoc cannot read the .proto files")
        read = FileDescriptorSet.FromString(Path(out.name).read_bytes())
    return list(read.file)


def _type(field: FieldDescriptorProto, maps: dict[str, Any]) -> str:
    if (entry := maps.get(field.type_name)) is not None:
        key, value = (_type(each, {}) for each in entry.field)
        return f"map from {key} to {value}"
    if field.type_name:
        name = _link(field.type_name)
    else:
        name = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"repeated {name}"
    return f"optional {name}" if field.proto3_optional else name


def _link(full_name: str) -> str:
    name = full_name.removeprefix(_PACKAGE)
    return f"[{name}](#{name.replace('.', '').lower()})"
