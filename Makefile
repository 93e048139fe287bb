# The only interface: every target sets up what it needs and does not install again when nothing changed.
# The first Python that is new enough; name another with make PYTHON=...
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt

# As the command line does for itself: no spinning threads, see cli.main.
export OMP_WAIT_POLICY ?= PASSIVE
export OPENBLAS_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help demo site results test test-all test-browser test-gpu check coverage format docs bench bench-objectives bench-retrieval bench-divergences \
	bench-embed bench-gap bench-statistics bench-gpu bench-prepare bench-store bench-ranks bench-regimes chaos fuzz clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "csalign needs Python 3.11 or newer: make PYTHON=/path/to/python3" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing csalign into $(VENV) (about 8 GB; two minutes or so)" >&2
	$(PIP) -e '.[all]'
	@touch $@

$(VENV)/.test: $(VENV)/.core
	$(PIP) -e '.[test]'
	@touch $@

$(VENV)/.dev: $(VENV)/.test
	$(PIP) -e '.[dev]'
	@touch $@

demo: $(VENV)/.core ## train a small CLIP, align it with CS, report: two minutes of CPU beside the installation
	$(BIN)/csalign demo

test: $(VENV)/.test ## the tests that CI runs, on two cores
	$(BIN)/python -m pytest -n 2 --dist worksteal --durations 15 -m "not slow and not browser"

test-gpu: $(VENV)/.test ## what a CUDA device changes; skipped where there is none
	$(BIN)/python -m pytest -m gpu

test-browser: $(VENV)/.test ## the pages in the Chromium that is installed; skipped where there is none
	$(PIP) -e '.[browser]'
	$(BIN)/python -m pytest -m browser tests/report/test_browser.py

test-all: $(VENV)/.test ## all tests, the slow ones too
	$(BIN)/python -m pytest

coverage: $(VENV)/.dev ## branch coverage of the package by the tests that CI runs, and its floor
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not browser" --cov=cs_aligner_cli --cov-branch --cov-report=term:skip-covered

check: $(VENV)/.dev ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.dev ## write the format and the lint fixes that are safe
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(VENV)/.site: $(VENV)/.core
	$(PIP) -e '.[site]'
	@touch $@

site: $(VENV)/.site ## the documentation as a site that reads without a network, in site/; open site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

docs: $(VENV)/.test ## write docs/recipe.md from the schema, docs/bad-inputs.md and the table of docs/encoders.md from the tests
	$(BIN)/python docs/recipe_reference.py
	$(BIN)/python tests/bad_inputs.py
	$(BIN)/python tests/foreign_files.py
	$(BIN)/python docs/result_schemas.py

bench: bench-objectives ## measure us and our peers in one run and print ratios
	$(BIN)/python benchmarks/retrieval.py metrics

bench-objectives: $(VENV)/.test ## InfoNCE + CS over tiles: time, memory, error; GROWTH=FILE.png also 1k to 32k rows
	$(BIN)/python benchmarks/objectives.py $(if $(GROWTH),--growth $(GROWTH))
	$(BIN)/python benchmarks/tokens.py

bench-retrieval: $(VENV)/.core ## retrieval alone, up to a million vectors: ten minutes or so
	$(BIN)/python benchmarks/retrieval.py

# The folder of the benchmarks' data: what docs/data.md says of Flickr8k.
DATA ?= ../shared/data/flickr8k

bench-divergences: $(VENV)/.test ## every divergence under one recipe, 3 seeds: make bench-divergences DATA=FOLDER
	$(BIN)/csalign sweep recipes/flickr8k_divergences.yaml --set data.root=$(DATA)

bench-regimes: $(VENV)/.test ## unpaired items and caption modes on Flickr8k, 37 runs, an hour: make bench-regimes DATA=FOLDER
	$(BIN)/csalign sweep recipes/flickr8k_regimes.yaml --set data.root=$(DATA)
	$(BIN)/csalign sweep recipes/flickr8k_captions.yaml --set data.root=$(DATA)

results: $(VENV)/.test ## the tables of README and docs from runs on Flickr8k, two hours on two cores: make results DATA=FOLDER
	for name in flickr8k temperatures photos; do $(BIN)/python benchmarks/results.py run $$name --root $(DATA) || exit; done
	$(BIN)/python benchmarks/results.py tables

bench-embed: $(VENV)/.test ## embedding against the bare forward pass and plain loops: make bench-embed DATA=FOLDER
	$(BIN)/python benchmarks/embed.py $(DATA)

bench-gpu: $(VENV)/.test ## the objective, embedding and an adapter step on one CUDA device, as one table: make bench-gpu DATA=FOLDER
	PATH=$(abspath $(BIN)):$$PATH ONLY="errors objective training embed" bash benchmarks/gpu_check.sh $(abspath $(DATA))/images

bench-statistics: $(VENV)/.core ## coverage, false alarms and power of the gap's statistics, into docs/statistics.md: ten minutes
	$(BIN)/python benchmarks/gap_statistics.py --write

bench-gap: $(VENV)/.core ## the gap report at three sizes, up to a million pairs: time and peak memory
	$(BIN)/python benchmarks/gap.py

bench-prepare: $(VENV)/.core ## prepare on a million captions: time and peak memory, beside a plain loop
	$(BIN)/python benchmarks/prepare.py

bench-store: $(VENV)/.core ## reading stores of 1 to 5,000 shards against one array: two minutes or so
	$(BIN)/python benchmarks/stores.py

# How many cases make fuzz tries in all.
CASES ?= 20000

fuzz: $(VENV)/.test ## 20,000 random recipes, manifests, tables, archives and feature files: make fuzz CASES=N
	CSALIGN_FUZZ=$(CASES) $(BIN)/python -m pytest tests/whole/test_fuzz.py

bench-ranks: $(VENV)/.core ## 2 and 4 ranks against one process: losses, gradients, weights, stores, memory of each
	$(BIN)/python benchmarks/ranks.py

chaos: $(VENV)/.core ## 120 SIGKILLs, 20 full disks, 20 flipped bits: every run and sweep must end as if nothing had happened
	$(BIN)/python benchmarks/chaos.py

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
