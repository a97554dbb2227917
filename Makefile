# Two commands for a newcomer: `make demo`, then `make test`. Only Python 3.11 or newer is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LATEST := .venv-latest
DEMO := runs/demo
WORKERS ?= 2
PYTEST = $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

.PHONY: demo test test-slow test-latest lint bench bench-gpu clean

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed; make PYTHON=python3.12 $(MAKECMDGOALS) names another"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable . --constraint constraints.txt
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[test]' --constraint constraints.txt
	touch $@

$(VENV)/installed-lint: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[test,bench,lint]' --constraint constraints.txt
	touch $@

demo: $(VENV)/installed  ## every step from ResNet to ConvNeXt, trained on handwritten digits; prints where the report lies
	$(BIN)/convnext roadmap --data digits --regime micro --seeds 5 --minutes 5 --out $(DEMO)

test: $(VENV)/installed-test  ## everything but the slow tests, in two processes; make test WORKERS=8 on more cores
	$(PYTEST)

test-slow: $(VENV)/installed-test
	$(PYTEST) -m slow

test-latest: BIN := $(LATEST)/bin
test-latest:  ## as test, with the newest releases: neither constraints.txt nor pip's configuration files hold them back
	$(PYTHON) -m venv $(LATEST)
	PIP_CONFIG_FILE=/dev/null PIP_CONSTRAINT= $(BIN)/python -m pip install --quiet --upgrade --upgrade-strategy eager --editable '.[test]'
	$(PYTEST)

lint: $(VENV)/installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

$(VENV)/installed-bench: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[bench,int8-peers,serve]' --constraint constraints.txt
	touch $@

bench: $(VENV)/installed-bench  ## speed and memory against timm, torchvision and transformers, as committed in benchmarks/results
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/digits.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/cold_start.py
	$(BIN)/python benchmarks/depthwise.py
	$(BIN)/python benchmarks/training_kernels.py
	$(BIN)/python benchmarks/roofline.py
	$(BIN)/python benchmarks/loader.py
	$(BIN)/python benchmarks/export.py
	$(BIN)/python benchmarks/serve.py

bench-gpu: $(VENV)/installed-bench  ## the fused kernels on this machine's GPU, in under 8 minutes
	$(BIN)/python benchmarks/gpu.py

clean:
	rm -rf $(VENV) $(LATEST) runs
