# Everything a developer types. `make` alone lists the targets.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

GROUPS ?= 1
RANKS ?= 2
PORT ?= 8000
GRPC_PORT ?= 50051
PYTHON ?= python3.11
SEED ?= 1
ARGS ?=
CASES ?= 20000
GUIDED ?= 30
REQUESTS ?= 50000
STREAMS ?= 2000
export PYTHON

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z][a-z0-9-]*:.*## ' $(MAKEFILE_LIST) | \
	    sed -E 's/^([a-z0-9-]+):.*## (.*)$$/  \1\t\2/' | expand -t 18

.PHONY: run
run: venv ## Serve pocket-r1 here until Ctrl-C (GROUPS=1 RANKS=2 PORT=8000 GRPC_PORT=50051)
	@exec .venv/bin/moe-serving up --groups $(GROUPS) --ranks $(RANKS) \
	    --port $(PORT) --grpc-port $(GRPC_PORT) $(ARGS)

.PHONY: test
test: venv-dev ## Run all tests: unit, integration, end to end (ARGS="-k name" passes on)
	@.ci/tools
	@# Real engines are started from a fresh process each time: vLLM forks and spawns its own,
	@# and what earlier tests left in one process (thread pools, open channels) breaks them.
	@# They also want the machine for themselves; the others share it in three processes.
	@part() { .venv/bin/python -m pytest "$$@" $(ARGS) || { code=$$?; \
	    [[ $$code == 5 && -n "$(ARGS)" ]] || exit $$code; }; }; \
	part -m "not vllm and not e2e" -n 3 --dist loadfile --no-loadscope-reorder; \
	part -m "vllm and not e2e"; \
	part -m e2e

.PHONY: fuzz
fuzz: venv-dev ## 20,000 malformed requests, 20,000 changes of recorded traffic, each seam led by coverage (CASES=20000 SEED=1 GUIDED=30 seconds a seam)
	@FUZZ_CASES=$(CASES) FUZZ_SEED=$(SEED) FUZZ_SECONDS=$(GUIDED) \
	    .venv/bin/python -m pytest -m "not vllm" tests/fuzz $(ARGS)
	@FUZZ_ENGINE_CASES=3000 FUZZ_SEED=$(SEED) \
	    .venv/bin/python -m pytest -m vllm tests/fuzz $(ARGS)

.PHONY: streams
streams: venv-dev ## 2,000 seeded requests, each whole and streamed, without and with MTP (STREAMS=2000 SEED=1)
	@.ci/tools
	@for flags in "" "--speculative mtp"; do \
	    MOE_TEST_UP_FLAGS="$$flags" STREAM_CASES=$(STREAMS) STREAM_SEED=$(SEED) \
	        .venv/bin/python -m pytest -s -m e2e tests/e2e/served/test_stream_is_whole.py $(ARGS); \
	done

.PHONY: soak
soak: venv-dev ## 50,000 mixed requests; nothing may leak (REQUESTS=50000)
	@SOAK_REQUESTS=$(REQUESTS) \
	    .venv/bin/python -m pytest tests/integration/edge/test_leaks.py $(ARGS)

.PHONY: overload
overload: venv-dev ## Five times as much as the fleet can do for 60 s, with its table (ARGS="--seconds 60")
	@exec .venv/bin/python -m tests.overload.run $(ARGS)

.PHONY: check
check: venv-dev ## Lint, formatting, types, import rules, generated code
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports
	@.ci/proto --check

.PHONY: chart
chart: venv-dev ## The Helm chart: generated files, lint, rendering, schemas, refusals (Helm 3 and 4)
	@.ci/tools
	@.venv/bin/python helm/generate.py --check
	@.venv/bin/python -m pytest tests/helm tests/unit/cli/doctor/test_gpu_memory.py \
	    tests/unit/engine/test_serve_app.py tests/unit/cli/doctor/test_presets.py $(ARGS)

.PHONY: images
VERSION ?= 0.1.0
REGISTRY ?= ghcr.io/moe-serving
IMAGES ?= router engine-cpu engine-gpu
images: ## Build the container images (needs docker; not run in CI) (IMAGES="router engine-cpu" REGISTRY=… VERSION=0.1.0)
	@for image in $(IMAGES); do \
	    docker build -f deploy/images/$$image.Dockerfile --build-arg VERSION=$(VERSION) \
	        -t $(REGISTRY)/$$image:$(VERSION) .; done

.PHONY: fmt
fmt: venv-dev ## Format the code and mend what ruff can
	@.venv/bin/ruff check --fix-only --quiet .
	@.venv/bin/ruff format .

.PHONY: proto
proto: venv-dev ## Generate serving/{api,link}/v1 from proto/
	@.ci/proto

.PHONY: dashboards
dashboards: venv-dev ## Write deploy/grafana/*.json from its code
	@.venv/bin/python deploy/grafana/build.py

.PHONY: two-nodes
two-nodes: venv ## One group over two nodes (network namespaces; needs root and iproute2)
	@exec .venv/bin/python -m tests.rig.two_nodes $(ARGS)

.PHONY: faults faults-replay
faults: venv ## Kill ranks, nodes, Ray of the real thing under traffic; print what survived (40 minutes)
	@.ci/tools
	@exec .venv/bin/python -m tests.faults.real $(ARGS)
faults-replay: venv ## Print one history of the simulated cluster (SEED=1)
	@exec .venv/bin/python -m tests.faults.replay --seed $(SEED) $(ARGS)

.PHONY: blue-green
blue-green: venv ## Replace one Ray Serve app by another under load; print what was lost (6 minutes)
	@exec .venv/bin/python -m tests.bluegreen.run $(ARGS)

.PHONY: load bench
load: venv ## Load a server and report (ARGS="run --rate 2,4,8 --slo-ttft-ms 500"; ARGS=--help)
	@exec .venv/bin/python -m loadtest $(ARGS)
bench: venv ## What the router costs, alone and beside its peers; writes deploy/docs/performance (ARGS=--quick)
	@.venv/bin/python -m loadtest.bench $(ARGS)
	@exec .venv/bin/python -m loadtest.bench.peers $(ARGS)

.PHONY: load-agreement
load-agreement: venv ## Our load client beside vLLM's bench client and guidellm, in turn (ARGS="--url http://…"; ARGS=--quick)
	@exec .venv/bin/python -m loadtest.bench.agreement $(ARGS)

.PHONY: floods
floods: venv ## What one client's flood does to the streams of others; writes deploy/docs/performance/floods.md (ARGS=--quick)
	@exec .venv/bin/python -m loadtest.bench.floods $(ARGS)

.PHONY: clients
clients: venv-dev ## Released SDKs and frameworks against the real system; writes deploy/docs/clients.md (ARGS="--only openai")
	@.ci/clients
	@exec .venv/bin/python -m tests.clients.run $(ARGS)

.PHONY: affinity
affinity: venv ## What prefix affinity is worth against load alone (ARGS="--trace FILE")
	@exec .venv/bin/python -m loadtest.affinity $(ARGS)

.PHONY: autoscale-demo
autoscale-demo: venv ## Groups follow the load, 0 to 2 and back, on real Prometheus and Ray Serve (5 minutes)
	@.ci/tools
	@exec .venv/bin/python -m loadtest.autoscale $(ARGS)

.PHONY: simulate
simulate: venv ## Our policy against fixed sizes and queue rules, 1,000 simulated groups (ARGS=--against-real)
	@exec .venv/bin/python -m loadtest.simulation $(ARGS)

.PHONY: doctor
doctor: venv ## Check this machine and say what to do
	@.venv/bin/moe-serving doctor $(ARGS)

.PHONY: clean
clean: ## Remove caches and build results (keeps .venv)
	@rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .run
	@find serving tests -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: clean-venv
clean-venv: ## Remove .venv and .tools, so that the next make installs anew
	@rm -rf .venv .tools

.PHONY: venv venv-dev
venv:
	@.ci/setup run
venv-dev:
	@.ci/setup dev
