# Ray head and ranks on CPUs; also runs a whole fleet in one container (moe-serving up).
#   docker build -f deploy/images/engine-cpu.Dockerfile -t …/engine-cpu:0.1.0 .
# This repository's tests do not build it: they have no container engine.
# For a release, pin the base image by digest (PYTHON_IMAGE=…@sha256:…) and let the builder write the
# bill of materials (docker buildx build --sbom=true --provenance=true).
ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/serving
WORKDIR /src
COPY requirements/torch.lock requirements/cpu.lock requirements/
RUN /opt/serving/bin/pip install --no-deps --index-url ${TORCH_INDEX} -r requirements/torch.lock \
    && /opt/serving/bin/pip install --no-deps -r requirements/cpu.lock
COPY pyproject.toml README.md LICENSE ./
COPY serving serving
COPY deploy/models/pocket-r1 deploy/models/pocket-r1
COPY deploy/presets deploy/presets
RUN /opt/serving/bin/pip install --no-deps --no-build-isolation .

FROM ${PYTHON_IMAGE}
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="moe-serving engine for CPUs" \
      org.opencontainers.image.description="Ray and expert-parallel vLLM ranks" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="MIT"
# KubeRay's probes call wget; vLLM's CPU build recommends tcmalloc as the allocator.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends wget libtcmalloc-minimal4 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/serving /opt/serving
# The user has no home directory; the chart mounts one and sets HOME.
ENV PATH=/opt/serving/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp
USER 1000:1000
# KubeRay sets the command (ray start …).
CMD ["moe-serving", "--help"]
