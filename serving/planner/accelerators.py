"""GPUs with the figures that the planner needs, from their vendors' data sheets."""

import difflib
from dataclasses import dataclass

from serving.errors import InvalidRequest

_TERA = 1e12
_GB = 10**9
_NIC = 50e9
"""One 400 Gb/s NIC per GPU, bytes per second: NVIDIA's DGX H100, H200 and B200, DeepSeek's H800
nodes (arXiv 2412.19437, section 3.1) and AMD's MI300X reference platform."""


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One GPU (or CPU rank) and its node. Rates are peaks, without sparsity."""

    name: str
    memory: int
    """Memory, bytes."""
    fp8: float
    """Matrix multiplications in FP8, FLOP/s; equal to ``bf16`` without hardware for FP8."""
    bf16: float
    """Matrix multiplications in bfloat16, FLOP/s."""
    bandwidth: float
    """Memory bandwidth, bytes/s."""
    intra_node: float
    """Bandwidth to GPUs of the same node (NVLink, Infinity Fabric), bytes/s in one direction."""
    network: float = _NIC
    """Bandwidth to other nodes, bytes/s in one direction."""
    per_node: int = 8
    """Number of GPUs per node."""
    price: float = 0.0
    """Price of a GPU-hour, dollars."""
    price_source: str = "assumption"
    product: str = ""
    """Value of the node label nvidia.com/gpu.product; empty if nodes have a different label."""
    source: str = ""
    cpu: bool = False
    """Whether a worker is a CPU process."""


ACCELERATORS: dict[str, Accelerator] = {
    each.name: each
    for each in (
        Accelerator(
            "h800", 80 * _GB, 1979 * _TERA, 989 * _TERA, 3.35e12, 200e9,
            price=2.0, price_source="DeepSeek, open-infra-index, day 6", product="NVIDIA-H800",
            source="as H100, with 400 GB/s of NVLink (arXiv 2505.09343, section 4.1)",
        ),
        Accelerator(
            "h100", 80 * _GB, 1979 * _TERA, 989 * _TERA, 3.35e12, 450e9,
            price=2.0, price_source="assumption, as H800", product="NVIDIA-H100-80GB-HBM3",
            source="https://www.nvidia.com/en-us/data-center/h100/ (SXM; half of the sparse rates)",
        ),
        Accelerator(
            "h200", 141 * _GB, 1979 * _TERA, 989 * _TERA, 4.8e12, 450e9,
            price=2.5, product="NVIDIA-H200",
            source="https://www.nvidia.com/en-us/data-center/h200/ (SXM; half of the sparse rates)",
        ),
        Accelerator(
            "b200", 180 * _GB, 4500 * _TERA, 2250 * _TERA, 8e12, 900e9,
            price=4.0, product="NVIDIA-B200",
            source="https://www.nvidia.com/en-us/data-center/dgx-b200/ (an eighth; half of the "
            "sparse rates)",
        ),
        Accelerator(
            "mi300x", 192 * _GB, 2614.9 * _TERA, 1307.4 * _TERA, 5.3e12, 448e9,
            price=2.0,
            source="https://www.amd.com/en/products/accelerators/instinct/mi300/mi300x.html",
        ),
        Accelerator(
            "cpu", 4 * 2**30, 50e9, 50e9, 10e9, 5e9, network=1e9, per_node=1, price=0.04,
            source="nominal figures of one core, for calibrated plans only", cpu=True,
        ),
    )
}  # fmt: skip
"""All accelerators by name."""


def accelerator(name: str) -> Accelerator:
    """Return the accelerator with a name, ignoring case.

    Raises:
        InvalidRequest: There is no such accelerator; the message lists all names.
    """
    found = ACCELERATORS.get(name.lower())
    if found is None:
        near = difflib.get_close_matches(name.lower(), ACCELERATORS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InvalidRequest(
            f"unknown GPU {name}{hint} (known: {', '.join(ACCELERATORS)}; others are described by "
            "--gpu custom --gpu-memory-gb, --gpu-tflops and --gpu-bandwidth-gbs)"
        )
    return found
