"""Routes that load and unload LoRA adapters, with vLLM's names and bodies."""

from collections.abc import Iterator
from typing import Protocol

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from vllm.entrypoints.serve.lora.protocol import LoadLoRAAdapterRequest, UnloadLoRAAdapterRequest

from serving.errors import Unsupported
from serving.fleet.adapter_operations import AdapterStatus


class AdapterAdmin(Protocol):
    """Operations on adapters; ``serving.fleet.adapter_operations`` implements them."""

    def list(self) -> Iterator[AdapterStatus]:
        """Return the adapters of all models."""
        ...

    async def load(
        self, name: str, path: str, model: str | None = None, *, replace: bool = False
    ) -> AdapterStatus:
        """Check an adapter's files, and accept requests for it from now on.

        Raises:
            ServingError: The adapter is not accepted.
        """
        ...

    def unload(self, name: str) -> None:
        """Reject new requests for an adapter; running ones continue.

        Raises:
            ModelNotFound: there is no such adapter.
        """
        ...


class LoadAdapterBody(LoadLoRAAdapterRequest):
    """vLLM's body, and the base model."""

    base_model_name: str | None = None
    """None: the only model that takes adapters at run time."""


class _Pages:
    """Handlers of the routes."""

    def __init__(self, admin: AdapterAdmin) -> None:
        self._admin = admin

    async def load(self, request: LoadAdapterBody) -> PlainTextResponse:
        """Check an adapter's files, and accept requests for it."""
        if request.is_3d_lora_weight:
            raise Unsupported("is_3d_lora_weight: adapters of routed experts are not supported")
        name = request.lora_name
        await self._admin.load(
            name, request.lora_path, request.base_model_name, replace=request.load_inplace
        )
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    async def unload(self, request: UnloadLoRAAdapterRequest) -> PlainTextResponse:
        """Reject new requests for an adapter; running ones continue."""
        self._admin.unload(request.lora_name)
        return PlainTextResponse(
            f"Success: LoRA adapter '{request.lora_name}' removed successfully."
        )


def add_adapter_pages(app: FastAPI, admin: AdapterAdmin) -> None:
    """Add the routes to vLLM's app."""
    pages = _Pages(admin)
    app.add_api_route("/v1/load_lora_adapter", pages.load, methods=["POST"])
    app.add_api_route("/v1/unload_lora_adapter", pages.unload, methods=["POST"])
