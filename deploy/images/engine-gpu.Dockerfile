# Ray's head and ranks on NVIDIA GPUs.
#   docker build -f deploy/images/engine-gpu.Dockerfile -t …/engine-gpu:0.1.0 .
# Not built in this repository's tests, and not run on GPUs there.
# At release: name the base by digest (PYTHON_IMAGE=…@sha256:…), and have the builder write the bill
# of materials (docker buildx build --sbom=true --provenance=true).
ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/serving
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY serving serving
COPY deploy/models/pocket-r1 deploy/models/pocket-r1
COPY deploy/presets deploy/presets
# vLLM's own wheels bring CUDA's libraries; the driver comes from the node.
RUN /opt/serving/bin/pip install '.[gpu]'
# Wheels of DeepEP and DeepGEMM, which are built for one CUDA and one GPU, go into this folder.
COPY deploy/images/wheels /wheels
RUN find /wheels -name '*.whl' -exec /opt/serving/bin/pip install --no-deps {} +

FROM ${PYTHON_IMAGE}
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="moe-serving engine for GPUs" \
      org.opencontainers.image.description="Ray and expert-parallel vLLM ranks" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="MIT"
# KubeRay's probes call wget. The one image with a compiler: Triton builds its launchers with one
# when a kernel first runs. rdma-core's libraries are for NCCL and NVSHMEM.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends wget gcc libc6-dev libibverbs1 librdmacm1 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/serving /opt/serving
ENV PATH=/opt/serving/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000:1000
# KubeRay writes the command (ray start …).
CMD ["moe-serving", "--help"]
