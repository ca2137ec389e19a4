# Every target works on a fresh machine: .venv is made and filled on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RUN := PATH="$(CURDIR)/$(BIN):$$PATH"
PACKAGES := mach trainer shard_server aggregator

.PHONY: help install prometheus quickstart bench-accuracy bench-merge bench-fleet soak \
	test test-all check format protos clean

help: ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

install: $(STAMP) ## Create .venv with everything for development

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	# torch goes first and alone, so that its range is resolved before anything asks for more.
	$(BIN)/python -m pip install --quiet 'torch>=2.6,<2.14'
	$(BIN)/python -m pip install --quiet --editable '.[cpu,train,plot,store,trace,dev]'
	touch $@

# numba sees a change of the file that a function is in, not of what the function calls.
COMPILED := $(VENV)/.compiled
$(COMPILED): $(STAMP) $(shell find $(PACKAGES) -name '*.py')
	find $(PACKAGES) -name '*.nb[ic]' -delete
	touch $@

quickstart: $(STAMP) ## Train on a simulated store, serve it, search it
	$(RUN) mach quickstart

check: $(STAMP) ## Lint, types, protos
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(RUN) buf lint protos
	$(RUN) python scripts/generate_protos.py --check

# Tests of alerts and dashboard run Prometheus itself. Where it is missing and root allows, it is
# installed; elsewhere these tests are skipped and say so, but under CI=true they fail.
prometheus:
	@command -v prometheus >/dev/null && command -v promtool >/dev/null \
		|| { command -v apt-get >/dev/null && test "$$(id -u)" = 0 \
		&& apt-get update -qq \
		&& DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends prometheus; } \
		|| echo "prometheus cannot be installed here (it needs root and apt-get)"

# Tests start servers by the hundred: what was compiled is kept, whatever this shell's habit.
test test-all soak: export PYTHONDONTWRITEBYTECODE :=

# Test files are shared out between WORKERS, each of which starts servers and waits a good deal.
WORKERS ?= 2
IN_PARALLEL := --numprocesses=$(WORKERS) --dist=loadfile

test: check prometheus $(COMPILED) ## Check everything and run the tests (10 minutes on 2 cores)
	$(RUN) python -m pytest -m "not slow" $(IN_PARALLEL)

test-all: check prometheus $(COMPILED) ## The same and the slow tests
	-$(BIN)/python -m pip install --quiet --editable '.[ray]' # where it has no wheel, its test is skipped
	$(RUN) python -m pytest -m "not slow" $(IN_PARALLEL)
	$(RUN) python -m pytest -m slow

format: $(STAMP) ## Format the code
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

protos: $(STAMP) ## Generate mach/v1 from protos/
	$(RUN) python scripts/generate_protos.py

# DATASETS, TIB (the folder of tib-titles), ONLY and SKIP (systems, comma separated), RESUME=1.
bench-accuracy: $(COMPILED) ## Compare accuracy and cost with PECOS, omikuji and fastText (an hour)
	$(RUN) python -m benchmarks.accuracy $(DATASETS) $(if $(TIB),--tib $(TIB)) \
		$(if $(ONLY),--only $(ONLY)) $(if $(SKIP),--skip $(SKIP)) $(if $(RESUME),--resume)

# PARTS: sizes, scaling, filters, explicit; all by default.
bench-merge: $(COMPILED) ## Measure the top-k at several sizes (ten minutes)
	$(RUN) python -m benchmarks.merge measure $(PARTS)
	$(RUN) python -m benchmarks.merge report

# BUNDLE and, to know what is right, QUERIES: interactions; ONLY and SKIP (comma separated).
bench-fleet: $(COMPILED) ## Measure serving: BUNDLE=DIR [QUERIES=FILE]
	$(RUN) python -m benchmarks.fleet --bundle $(BUNDLE) $(if $(QUERIES),--queries $(QUERIES)) \
		$(if $(ONLY),--only $(ONLY)) $(if $(SKIP),--skip $(SKIP))

# Without a BUNDLE one is trained from the example's clicks, and nothing goes into the docs.
MINUTES ?= 60
SOAK_BUNDLE := $(or $(BUNDLE),out/soak.bundle)
soak: $(COMPILED) ## An hour of mixed load, memory flat: [BUNDLE=DIR] [MINUTES=60]
	$(if $(BUNDLE),,test -d $(SOAK_BUNDLE) || (mkdir -p out && $(RUN) mach train \
		examples/data/clicks.csv --catalog examples/data/catalog.csv --repetitions 4 \
		--out $(SOAK_BUNDLE)))
	$(RUN) python -m benchmarks.fleet.soak --bundle $(SOAK_BUNDLE) --minutes $(MINUTES) \
		$(if $(BUNDLE),$(if $(QUERIES),--queries $(QUERIES)),--results out --page out/none)

clean: ## Remove .venv and caches
	rm -rf $(VENV) .venvs .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
