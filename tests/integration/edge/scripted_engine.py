"""An engine that generates a script token by token, and can be held at a token."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
from tokenizers import Tokenizer
from vllm.sampling_params import SamplingParams

from serving.engine.generating import GeneratingEngine
from serving.link.v1 import link_pb2
from serving.settings import Settings

ANSWER = "17+25 is 42</think>It is 42"
"""The chat template has started the reasoning."""

_Choice = link_pb2.ChoiceDelta


class ScriptedEngine(GeneratingEngine):
    """Engine of one rank; every request gets ``script``."""

    kv_mirror = None

    def __init__(self, settings: Settings, fingerprint: str) -> None:
        self._settings = settings
        self._fingerprint = fingerprint
        self._tokenizer = Tokenizer.from_file(str(Path(settings.model.path) / "tokenizer.json"))
        self._steps = 0
        self.reset()

    def reset(self) -> None:
        """Reset the state of the previous test."""
        self.script = ANSWER
        self.cached_tokens = 0
        self.error: link_pb2.RequestError | None = None
        self.hold_after: int | None = None
        """Number of tokens after which a request waits until it is released."""
        self.params: list[SamplingParams] = []
        self.prompts: list[str] = []
        self.running: set[str] = set()
        self.quiet = asyncio.Event()
        """Set while no request runs."""
        self.quiet.set()
        self.held = asyncio.Event()
        self.release = asyncio.Event()
        """Set to release held requests."""

    async def start(self) -> None:
        pass

    def describe(self) -> link_pb2.Hello:
        return link_pb2.Hello(
            engine_version="scripted 1",
            model=self._settings.model.name,
            model_fingerprint=self._fingerprint,
            capacity=link_pb2.Capacity(max_model_len=2048, max_num_seqs=64),
            experts=link_pb2.ExpertPlacement(total=16, local_ids=range(16)),
        )

    async def generate(self, work: link_pb2.Submit) -> AsyncIterator[link_pb2.Delta]:
        params = msgspec.msgpack.decode(work.sampling_params, type=SamplingParams)
        self.params.append(params)
        self.prompts.append(
            self._tokenizer.decode(list(work.prompt_token_ids), skip_special_tokens=False)
        )
        self.running.add(work.request_id)
        self.quiet.clear()
        try:
            async for delta in self._deltas(work, params):
                yield delta
        finally:
            self.running.discard(work.request_id)
            if not self.running:
                self.quiet.set()

    async def _deltas(self, work, params) -> AsyncIterator[link_pb2.Delta]:
        tokens, reason = self._answer(params)
        for i, token in enumerate(tokens):
            if i == self.hold_after:
                self.held.set()
                await self.release.wait()
            await asyncio.sleep(0)
            self._steps += 1
            last = i == len(tokens) - 1
            if last and self.error is not None:
                yield link_pb2.Delta(request_id=work.request_id, finished=True, error=self.error)
                return
            yield link_pb2.Delta(
                request_id=work.request_id,
                prompt_tokens=len(work.prompt_token_ids) if i == 0 else 0,
                cached_tokens=self.cached_tokens if i == 0 else 0,
                choices=[
                    self._choice(n, token, params, last and reason == _Choice.LENGTH)
                    for n in range(params.n)
                ],
                finished=last and reason == _Choice.LENGTH,
            )
        if reason == _Choice.STOP:
            # As with a stop token, whose text is not part of the answer.
            ends = [_Choice(index=n, finish_reason=reason) for n in range(params.n)]
            yield link_pb2.Delta(request_id=work.request_id, choices=ends, finished=True)

    def _answer(self, params: SamplingParams) -> tuple[list[int], int]:
        text, reason = self.script, _Choice.STOP
        tokens = self._tokenizer.encode(text, add_special_tokens=False).ids
        if params.max_tokens is not None and len(tokens) > params.max_tokens:
            return tokens[: params.max_tokens], _Choice.LENGTH
        return tokens, reason

    def _choice(self, index, token, params, last) -> link_pb2.ChoiceDelta:
        choice = _Choice(index=index, token_ids=[token])
        if last:
            choice.finish_reason = _Choice.LENGTH
        if params.logprobs is not None:
            others = range(params.logprobs)
            choice.logprobs.append(
                link_pb2.PositionLogprobs(
                    token_ids=[token, *others],
                    logprobs=[-0.5, *(-1.0 - other for other in others)],
                    vocab_ranks=[1, *(2 + other for other in others)],
                )
            )
        return choice

    async def load(self) -> link_pb2.LoadSnapshot:
        return link_pb2.LoadSnapshot(
            health=link_pb2.LoadSnapshot.HEALTHY,
            running_requests=len(self.running),
            engine_steps_total=self._steps,
        )

    async def check_health(self) -> None:
        pass

    async def shutdown(self) -> None:
        pass
