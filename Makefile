# `make help` lists the targets. Everything happens in .venv; nothing is installed outside this folder.
SHELL := /bin/bash
PYTHON ?= python3
# A package index with CPU builds of torch saves gigabytes on Linux: TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
TORCH := $(shell sed -n 's/^ *"\(torch==[^"]*\)".*/\1/p' pyproject.toml)
VENV := .venv
BIN := $(VENV)/bin
STORE := model_store
CONFIG_FILES := $(wildcard setup_configs/*.json)
SAMPLES := ticket_routing document_qa
CXX_FILES = $(shell find kernels -name "*.h" -o -name "*.cuh" -o -name "*.cpp" -o -name "*.cu")
NAMES ?= $(if $(NAME),$(NAME),$(SAMPLES))

export PYTHONPATH := $(CURDIR)

.PHONY: help setup compile archive serve stop predict demo models test lint format gpu-check bench bench-peers report figures clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-12s %s\n", $$1, $$2}'

setup: $(VENV)/.ready  ## make .venv with the pinned dependencies

$(VENV)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed; set PYTHON="; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(BIN)/python -m builder.requirements | $(BIN)/python -m pip install --quiet --disable-pip-version-check -r /dev/stdin
	@touch $@

compile: setup  ## compile the kernels for DEVICE=cpu (default) or cuda
	@$(BIN)/python -m builder compile --device $(or $(DEVICE),cpu)

archive: setup  ## build archives: both samples, or MODEL=folder-or-hub-name [MODE=] [KIND=] [DTYPE=] [NAME=] [DEVICE=] [CALIBRATE=texts]
ifdef MODEL
	@$(BIN)/python -m builder archive --model $(MODEL) $(if $(MODE),--mode $(MODE)) $(if $(KIND),--kind $(KIND)) \
	  $(if $(DTYPE),--data-type $(DTYPE)) $(if $(NAME),--name $(NAME)) $(if $(DEVICE),--device $(DEVICE)) \
	  $(if $(CALIBRATE),--calibrate $(CALIBRATE)) --output $(STORE)
else
	@$(BIN)/python -m samples build
	@for name in $(SAMPLES); do $(BIN)/python -m builder archive setup_configs/$$name.json \
	  $(if $(KIND),--kind $(KIND)) $(if $(DTYPE),--data-type $(DTYPE)) $(if $(DEVICE),--device $(DEVICE)) --output $(STORE) || exit 1; done
endif

serve: archives-present  ## start TorchServe in the background with NAMES (default: both samples)
	@$(BIN)/python -m deploy serve $(NAMES)

stop: setup  ## let running requests be answered, then stop it
	@$(BIN)/python -m deploy stop

predict: setup  ## send the sample inputs to the running server
	@$(BIN)/python -m deploy predict $(NAMES)

demo: archive  ## set up, build both samples, serve them, print their answers, stop
	@$(BIN)/python -m deploy demo $(SAMPLES)

models: setup  ## retrain the sample models' adapters and print their dev figures
	@for name in $(SAMPLES); do $(BIN)/python -m samples train $$name && $(BIN)/python -m samples evaluate $$name || exit 1; done

test: lint  ## lint, then every test that this machine can run
	@$(BIN)/python -m pytest

lint: setup  ## ruff, mypy, clang-format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

format: setup  ## rewrite the sources in the project's format
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format . ; $(BIN)/clang-format -i $(CXX_FILES)

gpu-check: setup  ## on a machine with a GPU: build, every operator and encoder, memory safety, speed beside peers
	@$(BIN)/python -m benchmarks.gpu_check

bench: $(VENV)/.bench  ## the encoder benchmark on this machine in 7 minutes, its plots and its report
	@$(BIN)/python -m benchmarks encoder --minutes 7 --engines ori ths thsext compile packed \
	  --workloads 1x32 1x128 8x128 minilm:32x128 --padding minilm:8x128 $(BENCH)
	@$(BIN)/python -m benchmarks report

bench-peers: $(VENV)/.bench $(VENV)/.peers  ## every engine that pip offers, in fp32, bf16 and int8, in 25 minutes
	@$(BIN)/python -m benchmarks encoder --minutes 25 --types fp32 bf16 int8 --padding none \
	  --workloads 1x16 1x32 1x128 1x384 8x128 8x384 32x128 $(BENCH)
	@$(BIN)/python -m benchmarks report

report: $(VENV)/.bench  ## draw plots and one HTML page from benchmarks/results
	@$(BIN)/python -m benchmarks report

figures: $(VENV)/.bench  ## redraw the README's plots from benchmarks/results
	@$(BIN)/python -m benchmarks report --figures docs/figures

$(VENV)/.bench $(VENV)/.peers: $(VENV)/.%: $(VENV)/.ready
	@$(BIN)/python -m builder.requirements $* | $(BIN)/python -m pip install --quiet --disable-pip-version-check -r /dev/stdin
	@touch $@

clean:  ## remove build output, archives and the environment
	rm -rf build .venv logs $(STORE)/*.mar

.PHONY: archives-present
archives-present: setup
	@for name in $(filter $(SAMPLES),$(NAMES)); do test -f $(STORE)/$$name.mar || { $(MAKE) archive && break; }; done
