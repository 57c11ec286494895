# SPDX-License-Identifier: Apache-2.0
# `make help` lists the targets. Everything a target needs is installed by the target itself.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PY := .venv/bin
SRC := crds/src phases/src handoff/src operator/src orchestrator/src sidecar/src trainer/src cli/src

.PHONY: help
help:  ## This list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 22

.PHONY: setup
setup:  ## Make .venv with everything (PYTHON=3.13 for the other supported version)
	@hack/setup

.PHONY: demo
demo: setup  ## A whole RLJob on this machine: real vLLM, Megatron-core and etcd, into runs/demo
	@rm -rf runs/demo
	@$(PY)/tandem run examples/chain-sum.yaml --out runs/demo

.PHONY: test
test: setup  ## Unit and integration tests
	@command -v nft >/dev/null || [ "$$(id -u)" != 0 ] || hack/debian-packages nftables # for faults that cut processes off
	@$(PY)/pytest -n 2 --dist loadfile tests/unit tests/integration

.PHONY: soak
soak: setup  ## Property tests on fresh examples; every kind of fault in every phase and a hundred random plans, for hours
	@$(PY)/pytest -n 2 -m 'hypothesis and not soak' --hypothesis-profile=fresh tests/unit tests/integration
	@$(PY)/pytest -m soak tests/integration

.PHONY: gpu-test
gpu-test: setup  ## Tests that need one GPU; elsewhere each says that it has none
	@PYTHONPATH=tests/gpu $(PY)/pytest -rs -s tests/gpu

.PHONY: e2e
e2e: setup  ## End-to-end tests on a real Kubernetes: the one of tests/cluster, or the one TANDEM_E2E_KUBECONFIG names
	@hack/e2e

.PHONY: e2e-recovery
e2e-recovery: setup  ## Faults on that Kubernetes: engines, trainers, pods, a node, etcd, operator; 15 minutes once images are built
	@hack/e2e -m recovery

.PHONY: e2e-kueue
e2e-kueue: setup  ## Kueue itself, built from source, deciding when jobs start; needs root
	@PYTHONPATH=tests $(PY)/python -c 'import kueue; kueue.program()' # The control plane's network reaches nobody.
	@hack/with-control-plane $(PY)/pytest -m kueue tests/e2e

.PHONY: model
model:  ## Check the model of the phase protocol, and that the checker finds each missing fence
	@tests/model/check

.PHONY: cluster-up
cluster-up: setup  ## Start the Kubernetes of tests/cluster
	@$(PY)/python tests/cluster/cluster.py up

.PHONY: cluster-down
cluster-down: setup  ## End it, with everything that it started
	@$(PY)/python tests/cluster/cluster.py down

.PHONY: cluster-demo
cluster-demo: setup cluster-up  ## The demo on that cluster: images, helm install, kubectl apply
	@hack/cluster-demo

.PHONY: images
images: setup  ## Build the container images, with docker or buildah
	@$(PY)/python images/build.py

.PHONY: lint
lint: setup  ## Format, lint, types, import rules, generated files
	@$(PY)/ruff format --check .
	@$(PY)/ruff check .
	@$(PY)/mypy $(SRC)
	@$(PY)/lint-imports --no-cache
	@$(PY)/python -m tandem_api.schema --check
	@diff crds/rljobs.yaml charts/tandem/files/rljobs.yaml
	@$(PY)/python -m tandem_api.reference --check
	@$(PY)/python -m tandem_api.metrics_page --check
	@$(PY)/python -m dashboards.generate --check

.PHONY: dashboards-check
dashboards-check: setup  ## Panels and alerts against the declared metrics, and the alerts' tests; needs no Grafana
	@$(PY)/python -m dashboards.generate --check
	@promtool="$$(hack/prometheus)/promtool"; $(PY)/python -m dashboards.check "$$promtool"; \
		"$$promtool" check rules charts/tandem/rules/tandem.yaml; "$$promtool" test rules tests/alerts/*.yaml

.PHONY: generate
generate: setup  ## Write the generated files anew: CRD and reference
	@$(PY)/python -m tandem_api.schema
	@cp crds/rljobs.yaml charts/tandem/files/rljobs.yaml
	@$(PY)/python -m tandem_api.reference
	@$(PY)/python -m tandem_api.metrics_page
	@$(PY)/python -m dashboards.generate

.PHONY: docs
docs: setup  ## The documentation as pages, in build/site
	@$(PY)/mkdocs build --quiet

.PHONY: bench
bench: bench-iteration bench-buffer bench-metrics bench-learning  ## All benchmarks

.PHONY: bench-operator
bench-operator: setup  ## 1,000 RLJobs at once beside JobSet with as many JobSets, each on an API server of its own; needs root
	@PYTHONPATH=tests $(PY)/python bench/operator_scale.py

.PHONY: bench-metrics
bench-metrics: setup  ## What metrics and traces cost: CPU time of an orchestrator, and a real run watched and alone
	@$(PY)/python bench/metrics.py
	@PYTHONPATH=tests $(PY)/python bench/watching.py

.PHONY: bench-handoff
bench-handoff: setup  ## Weights into a running engine: Tandem beside files, a broadcast, a restart and a plain copy
	@PYTHONPATH=tests $(PY)/python bench/handoff.py

.PHONY: bench-sandbox
bench-sandbox: setup  ## Starts of the code sandbox, beside a plain interpreter and runc
	@$(PY)/python bench/sandbox.py

.PHONY: bench-buffer
bench-buffer: setup  ## The replay buffer: durable appends, leases, opening
	@$(PY)/python bench/buffer.py

.PHONY: bench-learning
bench-learning: setup  ## The demo's accuracy before and after reinforcement learning, for three seeds
	@$(PY)/python bench/learning.py

.PHONY: bench-rollouts
bench-rollouts: setup  ## Synchronous and partial rollouts beside the ideal packing, on a heavy tail of lengths
	@$(PY)/python bench/rollouts.py

.PHONY: bench-phases
bench-phases: setup  ## Barriers of up to 1,024 simulated members on one etcd, beside the bare least that etcd takes
	@PYTHONPATH=tests $(PY)/python bench/phases.py

.PHONY: bench-iteration
bench-iteration: setup  ## Where an iteration's time goes
	@$(PY)/python bench/iteration.py
