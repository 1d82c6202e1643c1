"""The clients: the columns of the table."""

from dataclasses import dataclass
from typing import Literal

REST = ("client", "chat", "completions", "responses", "messages")


@dataclass(frozen=True)
class Client:
    """A client, i.e. a column of the table."""

    name: str
    """Title of the column, and value of ``--only``."""
    environment: Literal["main", "llama-index", "instructor", "node"]
    """Directory in .tools/clients."""
    script: str
    """Script in python or node. Its name must not be a package's: its directory is on the path."""
    packages: tuple[str, ...]
    """Packages whose versions the table shows, the most important first."""
    groups: tuple[str, ...] = REST
    """Groups of features that the client tries, or gives a reason for not trying."""

    @property
    def language(self) -> str:
        """Return Python or Node."""
        return "Node" if self.environment == "node" else "Python"


CLIENTS = (
    Client("openai", "main", "openai_client.py", ("openai",)),
    Client("anthropic", "main", "anthropic_client.py", ("anthropic",)),
    Client(
        "langchain-openai", "main", "langchain_client.py", ("langchain-openai", "langchain-core")
    ),
    Client("langchain-deepseek", "main", "langchain_deepseek_client.py", ("langchain-deepseek",)),
    Client("litellm", "main", "litellm_client.py", ("litellm",)),
    Client(
        "llama-index",
        "llama-index",
        "llama_index_client.py",
        ("llama-index-llms-openai-like", "llama-index-core"),
    ),
    Client("instructor", "instructor", "instructor_client.py", ("instructor",)),
    Client("openai for Node", "node", "openai_client.mjs", ("openai",)),
    Client("anthropic for Node", "node", "anthropic_client.mjs", ("@anthropic-ai/sdk",)),
    Client(
        "ai-sdk",
        "node",
        "ai_client.mjs",
        ("ai", "@ai-sdk/openai-compatible", "@ai-sdk/openai", "@ai-sdk/anthropic"),
    ),
    Client("grpcio", "main", "grpcio_client.py", ("grpcio",), groups=("grpc",)),
    Client("grpclib", "main", "grpclib_client.py", ("grpclib",), groups=("grpc",)),
    Client("connectrpc", "main", "connectrpc_client.py", ("connectrpc",), groups=("grpc",)),
    Client("grpc-js", "node", "grpc_js_client.mjs", ("@grpc/grpc-js",), groups=("grpc",)),
    Client("nice-grpc", "node", "nice_grpc_client.mjs", ("nice-grpc",), groups=("grpc",)),
    Client(
        "connect-node",
        "node",
        "connect_node_client.mjs",
        ("@connectrpc/connect-node", "@connectrpc/connect"),
        groups=("grpc",),
    ),
)
