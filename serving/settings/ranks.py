"""Settings of the ranks: the model, the shape of a group, the engine and the Ray cluster."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from serving.settings.adapters import (
    MAX_ADAPTERS,
    AdapterSettings,
    LoraSettings,
    require_different_names,
)
from serving.settings.base import BUNDLED_MODEL, Port, Seconds, SettingsGroup

ModelName = Annotated[str, Field(min_length=1, max_length=256)]
POOL_NAME = r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$"

_RESERVED_ENGINE_ARGS = {
    "model",
    "served_model_name",
    "data_parallel_size",
    "data_parallel_rank",
    "data_parallel_address",
    "data_parallel_rpc_port",
    "tensor_parallel_size",
    "enable_expert_parallel",
    "enable_lora",
    "max_loras",
    "max_cpu_loras",
    "max_lora_rank",
    "lora_modules",
}
"""Engine arguments that are derived from the settings under model and group."""


class ModelSettings(SettingsGroup):
    """The model that is served, and the name under which clients request it."""

    path: str = str(BUNDLED_MODEL)
    """Folder with configuration, tokenizer and weights, or the id of a Hugging Face model that is
    already in the local cache."""
    name: str = "pocket-r1"
    """Model id in the API."""
    aliases: tuple[ModelName, ...] = Field((), max_length=32)
    """Other names under which clients may request the model."""
    adapters: tuple[AdapterSettings, ...] = Field((), max_length=MAX_ADAPTERS)
    """LoRA adapters of the model, each of which clients request by its name."""
    lora: LoraSettings = LoraSettings()

    @model_validator(mode="after")
    def _check_adapters(self) -> "ModelSettings":
        try:
            require_different_names(self.adapters)
        except ValueError as error:
            raise ValueError(f"adapters{error}") from error
        names = {self.name, *self.aliases}
        for index, adapter in enumerate(self.adapters):
            if adapter.name in names:
                raise ValueError(f"adapters[{index}].name: {adapter.name!r} is a name of the model")
        return self

    @property
    def runs_adapters(self) -> bool:
        """Whether ranks of the model run LoRA adapters."""
        return bool(self.adapters) or self.lora.folder is not None


class GroupSettings(SettingsGroup):
    """Number, shape and placement of the expert-parallel groups."""

    count: int = Field(1, ge=0, le=1024)
    """Number of groups."""
    pool: str = Field("default", pattern=POOL_NAME)
    """Pool of the model that the groups belong to. Under models[].pools[], the pool's name."""
    data_parallel: int = Field(2, ge=1, le=1024)
    """Number of ranks in a group. The routed experts are split over data_parallel x tensor_parallel
    workers."""
    tensor_parallel: int = Field(1, ge=1, le=64)
    """Number of workers in a rank (tensor parallelism)."""
    placement: Literal["pack", "spread", "strict_spread"] = "pack"
    """How Ray places the ranks of a group. pack: on as few nodes as possible. spread: one rank per
    node where possible. strict_spread: exactly one rank per node, or the group is not placed."""
    node_resource: str | None = Field(None, pattern=r"^[A-Za-z][A-Za-z0-9_.-]*$")
    """Custom Ray resource that only the nodes of one pool offer; keeps a group within that pool.
    Null means any node."""
    cpus_per_rank: float = Field(1.0, gt=0)
    """Number of Ray CPUs reserved for a rank, in addition to the one of its Serve replica."""
    start_timeout: Seconds = 600.0
    """Time for all ranks of a group to become ready once they are requested from Ray, seconds."""
    placement_timeout: Seconds = 60.0
    """Time for Ray to place a group before an error is reported, seconds."""


class EngineSettings(SettingsGroup):
    """The vLLM engine of each rank."""

    kind: Literal["vllm", "fake"] = "vllm"
    """fake: an engine without a model that returns deterministic tokens; for tests and
    simulation."""
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    """Data type of weights and activations. In float32, greedy output does not depend on how the
    group is split."""
    max_model_len: int | None = Field(None, ge=16)
    """Maximum length of prompt plus output, tokens. Null means the limit in the model's
    configuration."""
    max_num_seqs: int = Field(64, ge=1)
    """Maximum number of sequences that a rank processes in one step."""
    speculative: Literal["none", "mtp"] = "none"
    """Speculative decoding. mtp: draft with the model's multi-token-prediction layer."""
    speculative_tokens: int = Field(1, ge=1, le=8)
    """Number of tokens drafted per step with speculative: mtp."""
    kv_cache_gib: float = Field(0.5, gt=0)
    """Memory for the KV cache of a rank, GiB. CPU only."""
    threads_per_rank: int = Field(1, ge=1)
    """Number of OpenMP threads of a worker. CPU only."""
    exchange: Literal["auto", "shared_memory", "gloo"] = "auto"
    """How the ranks of a group exchange tokens. shared_memory: through memory that all ranks map;
    a group that spans nodes does not start. gloo: through sockets. auto: shared memory if all ranks
    run on one node, otherwise gloo. CPU only."""
    exchange_spin_us: int = Field(50, ge=0, le=10_000)
    """Maximum time that a rank polls for another rank before it sleeps, in each exchange through
    shared memory, microseconds. Polling avoids the delay of a wake-up but keeps a core busy. CPU
    only."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Other vLLM engine arguments (fields of AsyncEngineArgs), validated by vLLM."""


def reserved_engine_args(engine: EngineSettings) -> str:
    """Return the names in ``args`` that other settings determine, as text; may be empty."""
    given = {key.replace("-", "_") for key in engine.args}
    return ", ".join(sorted(_RESERVED_ENGINE_ARGS & given))


class RaySettings(SettingsGroup):
    """The Ray cluster that runs the ranks."""

    address: str | None = None
    """Address of a running cluster. If null, a private one is started on the loopback interface."""
    app_name: str = "moe-serving"
    """Name of the Ray Serve application."""
    dashboard: bool = False
    """Whether to start the dashboard in a private cluster. It hosts Ray Serve's REST API, which the
    autoscaler needs, and costs about 600 MB of memory and 5 s at start-up."""
    dashboard_port: Port = 8265
    """Port of the dashboard of a private cluster."""
    num_cpus: float | None = None
    """Number of CPUs that a private cluster offers. Null means as many as the groups need."""
