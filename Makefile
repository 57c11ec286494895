# SPDX-License-Identifier: Apache-2.0
# `make help` lists the targets. Everything a target needs is installed by the target itself.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PY := .venv/bin
SRC := crds/src phases/src handoff/src operator/src orchestrator/src sidecar/src trainer/src cli/src

.PHONY: help
help:  ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 22

.PHONY: setup
setup:  ## Make .venv with everything (PYTHON=3.13 for the other supported version)
	@hack/setup

.PHONY: demo
demo: setup  ## A whole RLJob on this machine: real vLLM, Megatron-core and etcd, into runs/demo
	@rm -rf runs/demo
	@$(PY)/tandem run examples/chain-sum.yaml --out runs/demo

.PHONY: test
test: setup  ## Unit and integration tests
	@$(PY)/pytest -n 2 --dist loadfile tests/unit tests/integration

.PHONY: lint
lint: setup  ## Format, lint, types, import rules, generated files
	@$(PY)/ruff format --check .
	@$(PY)/ruff check .
	@$(PY)/mypy $(SRC)
	@$(PY)/lint-imports --no-cache
	@$(PY)/python -m tandem_api.schema --check
	@diff crds/rljobs.yaml charts/tandem/files/rljobs.yaml
	@$(PY)/python -m tandem_api.reference --check

.PHONY: generate
generate: setup  ## Write the generated files anew: CRD and reference
	@$(PY)/python -m tandem_api.schema
	@cp crds/rljobs.yaml charts/tandem/files/rljobs.yaml
	@$(PY)/python -m tandem_api.reference

.PHONY: bench-learning
bench-learning: setup  ## The demo's accuracy before and after reinforcement learning, for three seeds
	@$(PY)/python bench/learning.py

.PHONY: bench-iteration
bench-iteration: setup  ## Where an iteration's time goes
	@$(PY)/python bench/iteration.py
