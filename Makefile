# Everything happens in .venv; `make` alone lists the targets.
PYTHON ?= python3
VENV   ?= .venv
PORT   ?= 8000
BIN    := $(VENV)/bin
LOCK   := _build/lock
STAMP  := $(VENV)/.installed
# Another torch of pyproject.toml's range: make TORCH=2.15.0 VENV=../with-2.15.0 test
TORCH  ?=
TORCH  := $(or $(TORCH),$(shell sed -n 's/^torch==//p' requirements.txt))
# How many tests run at once, and with how many of torch's threads each.
WORKERS ?= auto
THREADS ?= $(or $(OMP_NUM_THREADS),1)

# Idle OpenMP threads that spin make small matrix products dozens of times slower on shared cores.
export OMP_WAIT_POLICY = PASSIVE

.DEFAULT_GOAL := help
.PHONY: help book pdf read test exhaustive portability versions rehearse lab refresh lint lock clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
	  echo "make: $(PYTHON) is $$($(PYTHON) --version 2>&1); the book needs Python 3.11, 3.12 or 3.13." >&2; \
	  echo "make: name another one, for example: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@sed 's/^torch==.*/torch==$(TORCH)/' requirements.txt > $(VENV)/requirements.txt
	@# The pip that comes with Python 3.11 takes twice as long. Without a newer one it does as well.
	-$(BIN)/python -m pip install -qq --upgrade pip
	$(BIN)/python -m pip install -qq -r $(VENV)/requirements.txt
	$(BIN)/python -m pip install -qq --no-deps --editable .
	@touch $@

book: $(STAMP) ## Build the HTML and say where it is
	$(BIN)/python book/_tools/build_html.py

pdf: book ## Print the book into one PDF; wants Chromium
	$(BIN)/python book/_tools/print_book.py

read: book ## Build the HTML and serve it on localhost
	@echo "Reading at http://localhost:$(PORT)/ (Ctrl-C stops)"
	@$(BIN)/python -m http.server $(PORT) --bind 127.0.0.1 --directory _build/html

test: $(STAMP) ## Run every test, the notebooks' included; ARGS=... goes to pytest
	OMP_NUM_THREADS=$(THREADS) $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

exhaustive: $(STAMP) ## Check rounding on all 2**32 float32 inputs, for about twenty minutes
	$(BIN)/python tests/exhaustive.py

portability: $(STAMP) ## Run the suite as other machines would, for about fifty minutes; WHICH="avx2 cu130" names a few
	$(BIN)/python tests/portability.py --which "$(WHICH)"

versions: $(STAMP) ## Run the suite on other torches and Pythons, gigabytes each; ONLY=torch2.15.0 names a few
	$(BIN)/python tests/versions.py --only "$(ONLY)"

rehearse: $(STAMP) ## Run notebooks and CUDA tests on GPUs that are stood in for, for about forty minutes; WHICH=T4
	$(BIN)/python tests/rehearse.py --which "$(WHICH)"

lab: $(STAMP) ## Open the notebooks in JupyterLab
	$(BIN)/jupyter lab book

refresh: $(STAMP) ## Re-execute and normalise notebooks; NOTEBOOKS=... names a few
	$(BIN)/python book/_tools/refresh.py $(NOTEBOOKS)

lint: $(STAMP) ## Check style, types and the book's own rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python book/_tools/lint.py

lock: ## Compile requirements.txt from pyproject.toml's ranges; UPGRADE=1 takes newer versions
	$(PYTHON) -m venv --clear $(LOCK)
	$(LOCK)/bin/python -m pip install -qq uv
	@# One lock for Python 3.11 to 3.13 on Linux and macOS. What torch needs for CUDA is left out:
	@# the torch that pip picks for a machine brings it along. A version stays unless it must go.
	cp requirements.txt $(LOCK)/all.txt
	$(LOCK)/bin/uv pip compile pyproject.toml --extra notebook --extra book --extra test --universal --python-version 3.11 \
	  --fork-strategy fewest --no-annotate --no-header --quiet $(if $(UPGRADE),--upgrade) -o $(LOCK)/all.txt
	@{ echo '# Written by `make lock`: every package of the book, on Python 3.11, 3.12 and 3.13.'; \
	   grep -vE '^(nvidia-|cuda-|triton)' $(LOCK)/all.txt; } > requirements.txt

clean: ## Remove what was built, and .venv
	rm -rf _build $(VENV)
