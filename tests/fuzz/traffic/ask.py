"""Requests of released Python clients while their traffic is recorded; see ``record``.

Run with the Python of the clients' own environment: ``python ask.py CLIENT`` with CLIENT_URL,
CLIENT_GRPC (host:port) and CLIENT_CALLS (JSON: [path, streamed, message as hex]).
"""

import asyncio
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor

URL, GRPC = os.environ["CLIENT_URL"], os.environ["CLIENT_GRPC"]
CALLS = [
    (path, streamed, bytes.fromhex(sent))
    for path, streamed, sent in json.loads(os.environ["CLIENT_CALLS"])
]
MODEL, USER = "pocket-r1", [{"role": "user", "content": "What is 17+25? Grüße 🙂"}]
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
TOOL = {"type": "function", "function": {"name": "add", "parameters": SCHEMA}}
AUTHORITY = ("grpc.default_authority", "router:80")


def openai_client() -> None:
    """Chat, completions, responses, streamed and not, with tools, schemas and log-probabilities."""
    import openai

    client = openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0)
    chat = {"model": MODEL, "messages": USER, "max_tokens": 6, "seed": 1}
    client.models.list()
    client.chat.completions.create(**chat)
    for extra in (
        {"stream_options": {"include_usage": True}},
        {"tools": [TOOL], "tool_choice": "auto"},
        {"logprobs": True, "top_logprobs": 2, "n": 2, "stop": ["ZZ"]},
    ):
        list(client.chat.completions.create(**chat, **extra, stream=True))
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
    client.chat.completions.create(
        **chat, response_format=form, extra_headers={"x-request-id": "a"}
    )
    list(
        client.completions.create(model=MODEL, prompt="What", max_tokens=5, stream=True, logprobs=1)
    )
    client.responses.create(model=MODEL, input="Hi", max_output_tokens=6)
    with client.responses.stream(model=MODEL, input=USER, max_output_tokens=6) as stream:
        list(stream)


def openai_async() -> None:
    """Several streams at once, one of them cancelled in the middle."""
    import openai

    async def all_of_it() -> None:
        async with openai.AsyncOpenAI(
            base_url=f"{URL}/v1", api_key="none", max_retries=0
        ) as client:

            async def one(count: int) -> None:
                stream = await client.chat.completions.create(
                    model=MODEL, messages=USER, max_tokens=9, stream=True
                )
                async for _ in stream:
                    count -= 1
                    if not count:
                        break
                await stream.close()

            await asyncio.gather(one(99), one(2), one(99))

    asyncio.run(all_of_it())


def anthropic_client() -> None:
    """Messages, streamed and not, with a tool; and a count of tokens."""
    import anthropic

    client = anthropic.Anthropic(base_url=URL, api_key="none", max_retries=0)
    ask = {"model": MODEL, "messages": USER, "max_tokens": 6}
    client.messages.create(**ask, system="Be short.")
    with client.messages.stream(**ask, tools=[{"name": "add", "input_schema": SCHEMA}]) as stream:
        list(stream)
    client.messages.count_tokens(model=MODEL, messages=USER)


def langchain_client() -> None:
    """Chat models of two packages."""
    from langchain_deepseek import ChatDeepSeek
    from langchain_openai import ChatOpenAI

    for make, where in ((ChatOpenAI, "base_url"), (ChatDeepSeek, "api_base")):
        model = make(
            model=MODEL, api_key="none", max_tokens=6, max_retries=0, **{where: f"{URL}/v1"}
        )
        model.invoke("Hi")
        list(model.stream("Hi"))


def litellm_client() -> None:
    """One streamed answer."""
    import litellm

    ask = {"model": f"openai/{MODEL}", "api_base": f"{URL}/v1", "api_key": "none"}
    list(litellm.completion(**ask, messages=USER, max_tokens=6, stream=True))


def grpcio_client() -> None:
    """All calls on one channel, sequential and concurrent; deadlines, metadata, gzip."""
    import grpc

    for options in ({}, {"compression": grpc.Compression.Gzip}):
        with grpc.insecure_channel(GRPC, options=[AUTHORITY], **options) as channel:

            def one(each: tuple, channel: grpc.Channel = channel) -> None:
                path, streamed, sent = each
                meta = (("x-request-id", "a"), ("x-bin", b"\0\1"))
                if streamed:
                    list(channel.unary_stream(path)(sent, timeout=90, metadata=meta))
                else:
                    channel.unary_unary(path)(sent, timeout=90, metadata=meta)

            with ThreadPoolExecutor() as pool:
                list(pool.map(one, CALLS))
            left = channel.unary_stream(CALLS[1][0])(CALLS[1][2])
            next(left)
            left.cancel()


def grpclib_client() -> None:
    """The same with a client in Python."""
    from grpclib.client import Channel, UnaryStreamMethod, UnaryUnaryMethod
    from grpclib.encoding.base import CodecBase

    class Raw(CodecBase):
        __content_subtype__ = "proto"

        def encode(self, message: bytes, message_type: object) -> bytes:
            return message

        def decode(self, data: bytes, message_type: object) -> bytes:
            return data

    async def all_of_it() -> None:
        host, _, port = GRPC.rpartition(":")
        async with Channel(host, int(port), codec=Raw()) as channel:
            for path, streamed, sent in CALLS:
                method = (UnaryStreamMethod if streamed else UnaryUnaryMethod)(
                    channel, path, bytes, bytes
                )
                await method(sent, timeout=90)

    asyncio.run(all_of_it())


CLIENTS = {
    "openai": openai_client,
    "openai-async": openai_async,
    "anthropic": anthropic_client,
    "langchain": langchain_client,
    "litellm": litellm_client,
    "grpcio": grpcio_client,
    "grpclib": grpclib_client,
}

if __name__ == "__main__":
    CLIENTS[sys.argv[1]]()
