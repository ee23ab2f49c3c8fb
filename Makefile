# `make help` lists the targets. Everything happens in .venv; nothing is installed outside this folder.

# Make expands $ in a variable's value whenever the variable is used or exported: MODEL='$(shell ...)' would run. So the
# text of every variable of the command line, and of the environment's that are used here, is taken as it stands
# (value), kept from being expanded again (:=), and reaches the programs as environment, never as a part of a command.
# What make itself expands before it reads this file (a name with $ in it, NAME:=, --eval) is the caller's own program.
VARIABLES := MODEL NAME NAMES TASK ENCODER FORMAT COMPUTE SCHEME MODE KIND DTYPE DEVICE CALIBRATE ADAPTER BENCH PORT TORCH_INDEX PYTHON
# A misspelt variable (model=, NMAE=) would be taken for none at all, and minutes go into what nobody asked for.
override PASSED_ON := EFFT_% PIP_% CXX NVCC CUDA_HOME JAVA_HOME TMPDIR MAKE% SHELL
$(foreach name,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(name)))),$(if \
  $(filter-out $(VARIABLES) $(PASSED_ON),$(name)),$(error $(name)= is no variable of this Makefile, which has \
  $(VARIABLES); as environment it goes before make))))
define as_it_stands
override $(1) := $$(value $(1))
endef
$(foreach name,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(name)))),$(eval $(call as_it_stands,$(name)))))
$(foreach name,$(VARIABLES),$(if $(filter environment,$(firstword $(origin $(name)))),$(eval $(call as_it_stands,$(name)))))
$(foreach name,$(VARIABLES),$(if $(filter undefined,$(origin $(name))),$(eval $(name) :=)))
export $(VARIABLES)

override SHELL := /bin/bash
override VENV := .venv
override BIN := $(VENV)/bin
override STORE := model_store
override TOOLS := build/tools
override SAMPLES := ticket_routing document_qa
override CXX_FILES = $(shell find kernels -name "*.h" -o -name "*.cuh" -o -name "*.cpp" -o -name "*.cu")
override LOCKS := $(addprefix locks/,base.txt dev.txt torch.txt cuda.txt)
override RUN := $(BIN)/python -m builder.make

override PYTHONPATH := $(CURDIR)
export PYTHONPATH

.PHONY: help setup compile archive serve stop predict demo models test lint format native gpu-check bench bench-peers \
  figures picture wheel lock audit sbom clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' Makefile | awk -F'|' '{printf "%-12s %s\n", $$1, $$2}'

setup: $(VENV)/.ready  ## make .venv with the packages of locks/, each checked by its SHA-256 [PYTHON=] [TORCH_INDEX=]

# A package index with CPU builds of torch saves gigabytes on Linux: TORCH_INDEX=https://download.pytorch.org/whl/cpu
$(VENV)/.ready: pyproject.toml $(LOCKS)
	@python="$${PYTHON:-python3}"; "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or later is needed; set PYTHON="; exit 1; }; hint=; \
	  [ -n "$$TORCH_INDEX" ] || hint="; without a GPU TORCH_INDEX=https://download.pytorch.org/whl/cpu saves gigabytes"; \
	  echo "setting up $(VENV) (a few minutes$$hint)"; "$$python" -m venv $(VENV)
	@$(BIN)/python -m builder.requirements dev
	@touch $@

compile: setup  ## compile the kernels for DEVICE=cpu (default) or cuda
	@$(RUN) compile

archive: setup  ## build archives: both samples, or MODEL=folder-or-hub-name [TASK=] [ENCODER=] [FORMAT=] [COMPUTE=] [SCHEME=] [NAME=] [DEVICE=] [CALIBRATE=texts] [ADAPTER=folder, or "NAME=folder ..."]
	@$(RUN) archive

serve: setup  ## start TorchServe in the background with NAMES (default: both samples) [PORT=]
	@$(RUN) serve

stop: setup  ## let running requests be answered, then stop it
	@$(BIN)/python -m deploy stop

predict: setup  ## send an example to each model of the running server, or to NAMES
	@$(RUN) predict

demo: setup  ## set up, build both samples, serve them, print their answers, stop [PORT=]
	@$(RUN) demo

models: setup  ## retrain the sample models' adapters and print their dev figures
	@for name in $(SAMPLES); do $(BIN)/python -m samples train $$name && $(BIN)/python -m samples evaluate $$name || exit 1; done

test: lint  ## lint, then every test that this machine can run
	@$(BIN)/python -m pytest -n 2 --dist loadscope

lint: setup  ## ruff, mypy, clang-format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

format: setup  ## rewrite the sources in the project's format
	@$(BIN)/ruff check --fix --quiet . ; $(BIN)/ruff format . ; $(BIN)/clang-format -i $(CXX_FILES)

native: setup  ## build the C library into build/native and run its tests, also under the sanitizers (docs/native.md)
	@$(BIN)/python -m builder install-native build/native
	@EFFT_NATIVE_SANITIZERS=1 $(BIN)/python -m pytest tests/native

gpu-check: setup  ## on a machine with a GPU: build, every operator and encoder, memory safety, speed beside peers
	@$(BIN)/python -m benchmarks.gpu_check

bench: $(VENV)/.bench  ## the encoder benchmark on this machine in 7 minutes
	@$(RUN) bench --minutes 7 --engines ori ths thsext compile packed \
	  --workloads 1x32 1x128 8x128 minilm:32x128 --padding minilm:8x128

bench-peers: $(VENV)/.bench $(VENV)/.peers  ## every engine that pip offers, in fp32, bf16 and int8, in 25 minutes
	@$(RUN) bench --minutes 25 --types fp32 bf16 int8 --padding none \
	  --workloads 1x16 1x32 1x128 1x384 8x128 8x384 32x128

figures: $(VENV)/.bench  ## redraw the plots of README and docs from benchmarks/results
	@$(BIN)/python -m benchmarks figures

picture: $(VENV)/.bench  ## redraw docs/figures/design.svg, which folder uses which, from the sources
	@$(BIN)/python docs/site/picture.py

docs: $(VENV)/.docs  ## the documentation as a static site in build/site
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet && echo build/site/index.html

$(VENV)/.bench $(VENV)/.peers $(VENV)/.docs: $(VENV)/.%: $(VENV)/.ready locks/%.txt
	@echo "installing the packages of locks/$*.txt (a few minutes)"; $(BIN)/python -m builder.requirements $*
	@touch $@

wheel: setup  ## build/dist/efft-VERSION.whl, whose command efft works without this checkout (docs/deploy.md)
	@$(BIN)/python -m hatchling build -t wheel -d build/dist

lock: $(TOOLS)/.ready  ## make the files in locks/ anew from pyproject.toml, then the SBOM [TORCH_INDEX= adds its builds of torch]
	@$(TOOLS)/bin/python -m builder.locks lock
	@$(TOOLS)/bin/python -m builder.sbom

sbom: $(TOOLS)/.ready  ## make locks/sbom.cdx.json (CycloneDX) and docs/licences.md from the locks
	@$(TOOLS)/bin/python -m builder.sbom

audit: $(TOOLS)/.ready  ## look every locked package up in the published advisories (needs a network)
	@$(TOOLS)/bin/python -m builder.locks audit

# An environment of their own: what these tools need must not decide what the product gets.
$(TOOLS)/.ready: locks/tools.txt
	@echo "setting up $(TOOLS)"; "$${PYTHON:-python3}" -m venv $(TOOLS)
	@$(TOOLS)/bin/python -m builder.requirements tools
	@touch $@

clean:  ## remove build output, archives and the environment
	rm -rf build .venv logs $(STORE)/*.mar
