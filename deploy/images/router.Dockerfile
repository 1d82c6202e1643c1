# Router and autoscaler: vLLM's OpenAI server without weights, GPU or Ray.
#   docker build -f deploy/images/router.Dockerfile -t …/router:0.1.0 .
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
    && grep -v '^ray==' requirements/cpu.lock > router.lock \
    && /opt/serving/bin/pip install --no-deps -r router.lock
COPY pyproject.toml README.md LICENSE ./
COPY serving serving
COPY deploy/models/pocket-r1 deploy/models/pocket-r1
COPY deploy/presets deploy/presets
RUN /opt/serving/bin/pip install --no-deps --no-build-isolation . \
    && /opt/serving/bin/pip uninstall --yes pip setuptools

FROM ${PYTHON_IMAGE}
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="moe-serving router" \
      org.opencontainers.image.description="gRPC and OpenAI REST in front of expert-parallel ranks" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="MIT"
COPY --from=build /opt/serving /opt/serving
ENV PATH=/opt/serving/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 1000:1000
EXPOSE 8000 50051 50052
ENTRYPOINT ["moe-serving"]
CMD ["router"]
