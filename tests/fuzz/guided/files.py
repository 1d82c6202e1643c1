"""Content of files and Kubernetes objects: unreadable content is rejected with a message."""

import json
import random
import re
from collections.abc import Iterable
from pathlib import Path

from serving.edge.auth.keys import parse_keys
from serving.errors import SettingsError
from tests.fuzz import mutators
from tests.fuzz.guided.finding import demand

PACKAGES = ("serving.edge.auth.key_file", "serving.edge.auth.keys", "serving.settings")
_TOKENS = (
    *(b"2027-13-41", b"2027-01-31", b"!!int x", b"!!binary x", b"&a ", b"*a", b"? ", b"- ", b": "),
    *(b"{", b"}", b"[" * 300, b"0x_", b"0b_", b"1e999", b".nan", b"9" * 30, b"!!timestamp 1"),
    *(
        b"!!python/object:x",
        b"<<: ",
        b"\t",
        b"\0",
        b"|\n",
        b"'",
        b'"',
        b"#",
        b"---\n",
        b"%YAML 9\n",
    ),
    *(
        b"2027-01-31T99:00:00Z",
        b"0001-01-01T00:00:00+14:00",
        b"9999-12-31",
        b"null",
        b"~",
        b"1:2:3",
    ),
)


class Keys:
    """The file with API keys."""

    name = "keys"
    packages = PACKAGES

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass

    def seeds(self) -> Iterable[bytes]:
        digest = "sha256:" + "0" * 64
        yield (
            f"keys:\n  - id: a\n    hash: {digest}\n    tenant: t\n    roles: [user, explain]\n"
            "    priorities: [standard]\n    expires: 2027-01-31\n"
            "tenants:\n  t: {requests_per_minute: 600, weight: 2.5}\n"
        ).encode()
        yield b"keys:\ntenants:\n"

    def mutate(self, rng: random.Random, data: bytes) -> bytes:
        if rng.random() < 0.5:
            return mutators.bytes_changed(rng, data)
        spots = [match.start() for match in re.finditer(rb"[ \n:]", data)] or [0]
        begin = rng.choice(spots)
        end = rng.choice([begin, begin, rng.choice(spots)])
        return (
            data[:begin] + rng.choice((b" ", b"")) + rng.choice(_TOKENS) + data[max(begin, end) :]
        )

    async def run(self, data: bytes) -> None:
        try:
            ring = parse_keys(data.decode("utf-8", "replace"))
        except SettingsError:
            return
        for key in ring.keys.values():
            demand(key.id and key.tenant, "a key without a name")


class SettingsFile(Keys):
    """The file with settings."""

    name = "settings"
    packages = ("serving.settings",)

    async def open(self) -> None:
        import tempfile

        self._folder = tempfile.TemporaryDirectory()
        self._file = Path(self._folder.name) / "settings.yaml"

    async def close(self) -> None:
        self._folder.cleanup()

    def seeds(self) -> Iterable[bytes]:
        yield b"router:\n  rest_port: 1\n  max_body_bytes: 1048576\nengine:\n  kind: fake\n"
        yield b"model: {name: x}\nrouting: {weights: {load: 1.0}}\nlink: {routers: ['a:1']}\n"
        yield json.dumps({"security": {"max_headers": 5}, "fleet": {"stall_timeout": 3}}).encode()

    async def run(self, data: bytes) -> None:
        from serving.settings import load_settings

        self._file.write_bytes(data)
        try:
            load_settings(self._file)
        except SettingsError as error:
            demand(str(error), "a rejection without a message")
