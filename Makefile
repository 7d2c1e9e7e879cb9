# Velodrome. `make race` and `make test` set up .venv on a fresh machine with Python 3.11+ and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH ?= torch==2.13.0
WORKERS ?= 2

.PHONY: race test check format bench claims docs clean

race: $(VENV)/ready
	$(BIN)/velodrome race adamw muon nadamw --on digits stdlib-gpt

test: $(VENV)/ready
	$(BIN)/python -m pytest -n $(WORKERS)

check: $(VENV)/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/ready
	$(BIN)/python -m benchmarks.loop
	$(BIN)/python -m benchmarks.optimizers
	$(BIN)/python -m benchmarks.optimizer_step
	$(BIN)/python -m benchmarks.averages
	$(BIN)/python -m benchmarks.muon
	$(BIN)/python -m benchmarks.population
	$(BIN)/python -m benchmarks.records
	$(BIN)/python -m benchmarks.serve
	$(BIN)/python -m benchmarks.race
	$(BIN)/python -m benchmarks.score
	$(BIN)/python -m benchmarks.schedules
	$(BIN)/python -m benchmarks.prediction
	$(BIN)/python -m benchmarks.probes

docs: $(VENV)/ready
	$(BIN)/python docs/refresh.py workloads
	$(BIN)/python docs/refresh.py optimizers

claims: $(VENV)/ready
	@missed=""; for place in experiments/*/__main__.py; do \
		name=$$(basename $$(dirname $$place)); began=$$(date +%s); echo "== $$name"; \
		$(BIN)/python -m experiments.$$name || missed="$$missed $$name"; echo "== $$name: $$(($$(date +%s) - began)) s by the clock"; \
	done; test -z "$$missed" || { echo "not confirmed:$$missed"; exit 1; }

# torch on its own and first: a range, or another package asking for it, may bring several gigabytes of CUDA
$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Velodrome needs Python 3.11 or newer: make PYTHON=python3.12 …")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check $(TORCH)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[data,report,query,ui,tensorboard,ray,references,dev]'
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps mup==1.0.0  # a reference of the tests; what it asks for would bring another torch
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
