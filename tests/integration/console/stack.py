"""A router with keys, and scripted ranks that continue a script where another rank stopped."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from typing_extensions import override

from serving.console.hub import SnapshotHub
from serving.edge.auth.keys import digest_of
from serving.engine.router_link.server import RankIdentity, RankServer
from serving.link.protocol import model_fingerprint
from serving.link.v1 import link_pb2
from serving.router.app import Router
from serving.settings import Settings
from tests.integration.edge.scripted_engine import ScriptedEngine
from tests.support.waiting import PATIENT_LINK, eventually

USER, ADMIN, METRICS, OTHER = (f"moe-{name}-key-of-the-console" for name in "uamo")
BUDGETS = "{month: {soft: 50, hard: 80}}"
KEYS = f"""
keys:
  - {{id: user, tenant: alice, hash: "{digest_of(USER)}", budgets: {BUDGETS}}}
  - {{id: admin, tenant: ops, roles: [admin], hash: "{digest_of(ADMIN)}"}}
  - {{id: metrics, tenant: prometheus, roles: [metrics], hash: "{digest_of(METRICS)}"}}
  - {{id: other, tenant: bob, hash: "{digest_of(OTHER)}"}}
"""
TARIFF = "currency: EUR\nmodels: {pocket-r1: {cached: 1000, uncached: 1000, output: 100000}}"
EXPERTS, LAYERS = 16, (3, 4, 5)


class ConsoleEngine(ScriptedEngine):
    """Continues the script after the part of it that ends the prompt, and counts experts."""

    def reset(self) -> None:
        super().reset()
        self.expert_tokens = [[1] * EXPERTS for _ in LAYERS]

    @override
    async def _deltas(self, work, params):
        script = self._tokenizer.encode(self.script, add_special_tokens=False).ids
        prompt = list(work.prompt_token_ids)
        done = next(
            n for n in range(len(script), -1, -1) if prompt[len(prompt) - n :] == script[:n]
        )
        whole, self.script = (
            self.script,
            self._tokenizer.decode(script[done:], skip_special_tokens=False),
        )
        try:
            tokens, reason = self._answer(params)
        finally:
            self.script = whole
        for index, token in enumerate(tokens):
            if self.hold_after is not None and done + index >= self.hold_after:
                self.held.set()
                await self.release.wait()
            self._steps += 1
            last = index == len(tokens) - 1 and reason == link_pb2.ChoiceDelta.LENGTH
            yield link_pb2.Delta(
                request_id=work.request_id,
                prompt_tokens=0 if index else len(prompt),
                choices=[self._choice(0, token, params, last)],
                finished=last,
            )
        if reason == link_pb2.ChoiceDelta.STOP:
            end = link_pb2.ChoiceDelta(finish_reason=reason)
            yield link_pb2.Delta(request_id=work.request_id, choices=[end], finished=True)

    @override
    async def load(self) -> link_pb2.LoadSnapshot:
        load = await super().load()
        for layer, tokens in zip(LAYERS, self.expert_tokens, strict=True):
            name = f"model.layers.{layer}.mlp.experts"
            load.experts.append(link_pb2.LayerExpertLoad(layer=name, tokens=tokens))
        return load


def settings(folder: Path, *, router=MappingProxyType({}), **console) -> Settings:
    """Settings with keys, a ledger and batches, whose files are in ``folder``."""
    file, tariff = folder / "keys.yaml", folder / "tariff.yaml"
    file.write_text(KEYS)
    tariff.write_text(TARIFF)
    return Settings(
        router={"rest_port": 0, "grpc_port": 0, "join_port": 0} | router,
        engine={"kind": "fake"},
        link={"load_interval": 0.05, "backoff_initial": 0.05} | PATIENT_LINK,
        security={"keys_file": str(file), "reload_interval": 0.05},
        ledger={
            "directory": str(folder / "ledger"),
            "tariff_file": str(tariff),
            "flush_interval": 0.02,
            "gpu_hour_price": 2,
        },
        batch={"directory": str(folder / "batch"), "interval": 0.05},
        console={"interval": 0.05, **console},
    )


@dataclass
class Stack:
    """A router and its groups of one rank."""

    router: Router
    settings: Settings
    engines: dict[str, ConsoleEngine] = field(default_factory=dict)
    servers: list[RankServer] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"{self.router.addresses.rest}/console/"

    @property
    def hub(self) -> SnapshotHub:
        app = self.router.rest.config.app.app.app
        [route] = [each for each in app.router.routes if each.path == "/console/api/stream"]
        return route.endpoint.__self__.hub

    async def join(self, group: str) -> None:
        ready = self.router.membership.ready_groups
        engine = ConsoleEngine(self.settings, model_fingerprint(self.settings.model.path))
        link = self.settings.link.model_copy(update={"routers": (self.router.addresses.join,)})
        identity = RankIdentity(group, f"epoch-{group}", 0, 1, "127.0.0.1")
        server = RankServer(engine, link, identity)
        await server.start()
        self.engines[group] = engine
        self.servers.append(server)
        await eventually(lambda: self.router.membership.ready_groups > ready)

    def script(self, text: str, *, hold_after: str | None = None) -> None:
        """Set the answer of every rank, and the part after which it waits for ``release``."""
        for engine in self.engines.values():
            engine.reset()
            engine.script = text
            if hold_after is not None:
                assert text.startswith(hold_after)
                sent = engine._tokenizer.encode(hold_after, add_special_tokens=False).ids
                engine.hold_after = len(sent)

    def release(self) -> None:
        for engine in self.engines.values():
            engine.release.set()

    @property
    def busy(self) -> str | None:
        """The group that runs a request."""
        return next((name for name, engine in self.engines.items() if engine.running), None)

    def lose(self, group: str) -> None:
        """Fence a group as if its rank had died; the rank then passes the canary again."""
        membership = self.router.membership
        [found] = [each for each in membership.snapshot().groups if each.group_id == group]
        rank_id = found.ranks[0].rank_id
        handle = membership.handle(rank_id)
        assert handle is not None
        membership.fault(rank_id, handle, "killed by the test")

    async def idle(self) -> None:
        await eventually(
            lambda: not self.router.client.inflight_requests, "the end of all requests"
        )


@contextlib.asynccontextmanager
async def running(made: Settings, *groups: str) -> AsyncIterator[Stack]:
    """Start a router and groups, and stop all of them at the end."""
    stack = Stack(await Router.start(made), made)
    try:
        for group in groups:
            await stack.join(group)
        yield stack
    finally:
        for server in stack.servers:
            await server.stop()
        await stack.router.stop()
