# Ray head and ranks on NVIDIA GPUs, with DeepEP for groups that span nodes.
#   docker build -f deploy/images/engine-gpu.Dockerfile -t …/engine-gpu:0.1.0 .
#   … --build-arg DEEPEP=none   without DeepEP and the CUDA compiler; engine.allToAll must then not
#                               be a deepep backend (ranks reject it at start-up)
# Requires BuildKit. This repository's tests do not build it (they have no container engine), and it
# has not run on GPUs. For a release, pin the base images by digest (PYTHON_IMAGE=…@sha256:…) and let the
# builder write the bill of materials (docker buildx build --sbom=true --provenance=true).
ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm
# The CUDA compiler; PyTorch requires the major version that its wheels were built with.
ARG CUDA_IMAGE=docker.io/nvidia/cuda:13.0.2-devel-ubuntu22.04
ARG DEEPEP=build

FROM ${PYTHON_IMAGE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/serving
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY serving serving
COPY deploy/models/pocket-r1 deploy/models/pocket-r1
COPY deploy/presets deploy/presets
# vLLM's wheels bring the CUDA libraries, NCCL, NVSHMEM and DeepGEMM; the driver is the node's.
RUN /opt/serving/bin/pip install '.[gpu]'

FROM ${CUDA_IMAGE} AS cuda

# DeepEP has no wheels: this builds one against the PyTorch and NVSHMEM of the environment above.
FROM build AS deepep-build
# The last commit of DeepEP 1 (kernels on NVSHMEM), which has everything that vLLM 0.32 calls for
# deepep_low_latency and deepep_high_throughput. Version 2 compiles kernels on import and would need a
# CUDA compiler in the image.
ARG DEEPEP_COMMIT=73b6ea4a439ba03a695563f9fd242c8e4b02b37c
# GPU architectures: 9.0 is Hopper (H100, H200).
ARG TORCH_CUDA_ARCH_LIST=9.0
ARG MAX_JOBS=4
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git g++ \
    && rm -rf /var/lib/apt/lists/*
COPY --from=cuda /usr/local/cuda-13.0 /usr/local/cuda
# CUDA 13 has its C++ headers in cccl. Without a driver, linking uses its stub.
ENV CUDA_HOME=/usr/local/cuda \
    CPATH=/usr/local/cuda/include/cccl \
    LIBRARY_PATH=/usr/local/cuda/lib64/stubs \
    TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST} \
    MAX_JOBS=${MAX_JOBS}
WORKDIR /deepep
RUN git init --quiet \
    && git fetch --quiet --depth 1 https://github.com/deepseek-ai/DeepEP.git ${DEEPEP_COMMIT} \
    && git checkout --quiet FETCH_HEAD
# Without NVSHMEM, DeepEP omits the kernels for communication between nodes and only logs this.
RUN /opt/serving/bin/pip install setuptools==80.9.0 wheel==0.45.1 ninja==1.13.0 \
    && /opt/serving/bin/python -c 'import nvidia.nvshmem' \
    && /opt/serving/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheels .

FROM ${PYTHON_IMAGE} AS deepep-none
RUN mkdir /wheels

# DEEPEP selects one of these stages: build or none.
FROM deepep-${DEEPEP} AS deepep

FROM build AS environment
# Your own wheels, instead of DeepEP's or in addition to it.
COPY deploy/images/wheels /wheels
COPY --from=deepep /wheels /made
RUN find /made /wheels -name '*.whl' -exec /opt/serving/bin/pip install --no-deps {} +

FROM ${PYTHON_IMAGE}
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="moe-serving engine for GPUs" \
      org.opencontainers.image.description="Ray and expert-parallel vLLM ranks" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="MIT"
# KubeRay's probes call wget. This is the only image with a compiler: Triton compiles its launchers
# when a kernel first runs. NCCL and NVSHMEM open RDMA devices through libibverbs, whose drivers
# (libmlx5 and others) are in ibverbs-providers; ibverbs-utils has ibv_devinfo.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends wget gcc libc6-dev \
        libibverbs1 ibverbs-providers librdmacm1 ibverbs-utils \
    && rm -rf /var/lib/apt/lists/*
COPY --from=environment /opt/serving /opt/serving
ENV PATH=/opt/serving/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000:1000
# KubeRay sets the command (ray start …).
CMD ["moe-serving", "--help"]
