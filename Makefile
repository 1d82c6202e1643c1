# The commands for development. `make` without a target lists them.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules
COMMA := ,

GROUPS ?= 1
RANKS ?= 2
# Models to serve, separated by commas: folders, names of bundled models, or NAME=PATH. Empty: the settings.
MODELS ?=
PORT ?= 8000
GRPC_PORT ?= 50051
# Interpreter for a new .venv, and uv or pip; empty: .ci/setup chooses.
PYTHON ?=
INSTALLER ?=
SEED ?= 1
ARGS ?=
CASES ?= 20000
GUIDED ?= 30
REQUESTS ?= 50000
STREAMS ?= 2000
export PYTHON INSTALLER

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z][a-z0-9-]*:.*## ' $(MAKEFILE_LIST) | \
	    sed -E 's/^([a-z0-9-]+):.*## (.*)$$/  \1\t\2/' | expand -t 18

.PHONY: run
run: venv ## Serve pocket-r1 on this machine until Ctrl-C (GROUPS=1 RANKS=2 PORT=8000 GRPC_PORT=50051 MODELS=a=/a,b=/b)
	@exec .venv/bin/moe-serving up --groups $(GROUPS) --ranks $(RANKS) \
	    $(addprefix --model ,$(subst $(COMMA), ,$(MODELS))) --port $(PORT) --grpc-port $(GRPC_PORT) $(ARGS)

.PHONY: test
test: venv-dev ## Run all tests: unit, integration, end to end (ARGS="-k name" goes to pytest)
	@.ci/tools
	@exec .venv/bin/python -m tests.suite $(ARGS)

.PHONY: fuzz
fuzz: venv-dev ## Fuzz with malformed requests, mutated traffic and coverage-guided input (CASES=20000 SEED=1; GUIDED=30: seconds per target)
	@FUZZ_CASES=$(CASES) FUZZ_SEED=$(SEED) FUZZ_SECONDS=$(GUIDED) \
	    .venv/bin/python -m pytest -m "not vllm" tests/fuzz $(ARGS)
	@FUZZ_ENGINE_CASES=3000 FUZZ_SEED=$(SEED) \
	    .venv/bin/python -m pytest -m vllm tests/fuzz $(ARGS)

.PHONY: streams
streams: venv-dev ## Compare streamed with non-streamed responses, without and with MTP (STREAMS=2000 SEED=1)
	@.ci/tools
	@for flags in "" "--speculative mtp"; do \
	    MOE_TEST_UP_FLAGS="$$flags" STREAM_CASES=$(STREAMS) STREAM_SEED=$(SEED) \
	        .venv/bin/python -m pytest -s -m e2e tests/e2e/served/test_stream_is_whole.py $(ARGS); \
	done

.PHONY: soak
soak: venv-dev ## Send mixed requests and check for leaks of memory, tasks and files (REQUESTS=50000)
	@SOAK_REQUESTS=$(REQUESTS) \
	    .venv/bin/python -m pytest tests/integration/edge/test_leaks.py $(ARGS)

.PHONY: overload
overload: venv-dev ## Load a fleet with five times its capacity and print the result (ARGS="--seconds 60")
	@exec .venv/bin/python -m tests.overload.run $(ARGS)

.PHONY: ledger
ledger: venv-dev ## Kill the router and PostgreSQL during 100,000 requests and compare the ledger with the clients' counts
	@.ci/tools
	@exec .venv/bin/python -m tests.ledger.run $(ARGS)

.PHONY: batches
batches: venv-dev ## Kill routers, ranks, PostgreSQL and the object storage during 20 batches and check that every line is answered once
	@.ci/tools
	@exec .venv/bin/python -m tests.batch.run $(ARGS)

.PHONY: check
check: venv-dev ## Lint, formatting, types, import rules, dead code, generated code and pages, the site
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports
	@.venv/bin/vulture
	@.ci/proto --check
	@.venv/bin/python -m deploy.docs.generate --check
	@$(SITE)

.PHONY: docs
# -E: also report warnings of unchanged pages.
SITE := .venv/bin/python -m sphinx -q -E -W --keep-going -d build/doctrees deploy/docs build/docs
docs: venv-dev ## Generate the reference pages and build the site into build/docs
	@.venv/bin/python -m deploy.docs.generate
	@$(SITE)

.PHONY: coverage
coverage: venv-dev ## Line and branch coverage of the tests that need no real engine, as a table
	@.ci/tools
	@.venv/bin/coverage erase
	@.venv/bin/coverage run -m pytest -m "not vllm and not e2e" $(ARGS)
	@.venv/bin/coverage combine --quiet
	@.venv/bin/coverage report

.PHONY: chart
chart: venv-dev ## Test the Helm chart with Helm 3 and 4: generated files, lint, rendering, schemas, rejected values
	@.ci/tools
	@.venv/bin/python helm/generate.py --check
	@.venv/bin/python -m pytest tests/helm tests/unit/planner/test_gpu_memory.py \
	    tests/unit/engine/test_serve_app.py tests/unit/cli/doctor/test_presets.py $(ARGS)

.PHONY: images
VERSION ?= 0.1.0
REGISTRY ?= ghcr.io/moe-serving
IMAGES ?= router engine-cpu engine-gpu
images: ## Build the container images; needs Docker, not run in CI (IMAGES="router engine-cpu" REGISTRY=… VERSION=0.1.0)
	@for image in $(IMAGES); do \
	    docker build -f deploy/images/$$image.Dockerfile --build-arg VERSION=$(VERSION) \
	        -t $(REGISTRY)/$$image:$(VERSION) .; done

.PHONY: fmt
fmt: venv-dev ## Format the code and apply ruff's safe fixes
	@.venv/bin/ruff check --fix-only --quiet .
	@.venv/bin/ruff format .

.PHONY: proto
proto: venv-dev ## Generate serving/{api,link}/v1 from proto/
	@.ci/proto

.PHONY: dashboards
dashboards: venv-dev ## Generate deploy/grafana/*.json from build.py
	@.venv/bin/python deploy/grafana/build.py

.PHONY: two-nodes
two-nodes: venv ## Run one group across two nodes, as network namespaces (needs root and iproute2)
	@exec .venv/bin/python -m tests.rig.two_nodes $(ARGS)

.PHONY: faults faults-replay
faults: venv ## Kill ranks, nodes and Ray under traffic and print what survived (40 minutes)
	@.ci/tools
	@exec .venv/bin/python -m tests.faults.real $(ARGS)
faults-replay: venv ## Print one fault history of the simulated cluster (SEED=1)
	@exec .venv/bin/python -m tests.faults.replay --seed $(SEED) $(ARGS)

.PHONY: blue-green
blue-green: venv ## Switch between two Ray Serve apps under load and print lost requests (6 minutes)
	@exec .venv/bin/python -m tests.bluegreen.run $(ARGS)

.PHONY: load bench
load: venv ## Load a server and report (ARGS="run --rate 2,4,8 --slo-ttft-ms 500"; ARGS=--help)
	@exec .venv/bin/python -m loadtest $(ARGS)
bench: venv ## Measure the router's cost, alone and compared with its peers; writes deploy/docs/performance (ARGS=--quick)
	@.venv/bin/python -m loadtest.bench $(ARGS)
	@exec .venv/bin/python -m loadtest.bench.peers $(ARGS)

.PHONY: load-agreement
load-agreement: venv ## Compare our load client with vLLM's bench client and guidellm (ARGS="--rest-url http://…"; ARGS=--quick)
	@exec .venv/bin/python -m loadtest.bench.agreement $(ARGS)

.PHONY: floods
floods: venv ## Measure what one client's flood does to other clients' streams; writes deploy/docs/performance/floods.md (ARGS=--quick)
	@exec .venv/bin/python -m loadtest.bench.floods $(ARGS)

.PHONY: clients
clients: venv-dev ## Run released SDKs and frameworks against the real system; writes deploy/docs/clients.md (ARGS="--only openai")
	@.ci/clients
	@exec .venv/bin/python -m tests.clients.run $(ARGS)

.PHONY: affinity
affinity: venv ## Compare prefix affinity with routing by load alone (ARGS="--trace FILE")
	@exec .venv/bin/python -m loadtest.demos.affinity $(ARGS)

.PHONY: autoscale-demo
autoscale-demo: venv ## Scale from 0 to 2 groups and back, with real Prometheus and Ray Serve (5 minutes)
	@.ci/tools
	@exec .venv/bin/python -m loadtest.demos.autoscale $(ARGS)

.PHONY: simulate
simulate: venv ## Compare our autoscaling policy with fixed sizes and queue rules, on 1,000 simulated groups (ARGS=--against-real)
	@exec .venv/bin/python -m loadtest.simulation $(ARGS)

.PHONY: doctor
doctor: venv ## Check this machine and print what to do about each problem
	@.venv/bin/moe-serving doctor $(ARGS)

.PHONY: clean
clean: ## Remove caches and build results; keeps .venv
	@rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .run
	@find serving tests -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: clean-venv
clean-venv: ## Remove .venv and .tools; the next make installs them again
	@rm -rf .venv .tools

.PHONY: venv venv-dev
venv:
	@.ci/setup run
venv-dev:
	@.ci/setup dev
