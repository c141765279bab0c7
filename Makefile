# Two commands from a fresh clone, set-up included: make demo, make test.
# PYTHON chooses the interpreter (3.10 or newer) that .venv is made from.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
DEMO := demo

TINY := ltm-tiny,vae-tiny,vae-vq-tiny,ar-tiny,bd3lm-tiny,mdlm-tiny,md4-tiny,md4-learned-tiny,sedd-tiny,sedd-uniform-tiny
TINY := $(TINY),ngram-tiny,ngram-unigram-tiny,ngram-uniform-tiny

AXE := 4.14.1

.PHONY: help setup demo readme leaderboard audit check test axe lint clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    train, evaluate and rank two tiny models on text that comes with Python (minutes, CPU)"
	@echo "make leaderboard  the same for every tiny model"
	@echo "make audit   audit every tiny model, and put the verdicts on that leaderboard"
	@echo "make check   fail if that leaderboard is not what its results give"
	@echo "make readme  put that leaderboard into README.md"
	@echo "make test    run all tests; those of the page need a Chromium, and make axe for its accessibility"
	@echo "make lint    ruff and mypy"
	@echo "make setup   only make .venv, with the exact versions of constraints.txt"
	@echo "make clean   remove .venv, demo and caches"

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 10) else "Python 3.10 or newer is needed: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

# What is trained and scored already is not done again.
demo: export LTM_HOME = $(DEMO)/home
demo: $(INSTALLED)
	$(BIN)/ltm-train ltm-tiny --corpus pydocs
	$(BIN)/ltm-train ar-tiny --corpus pydocs
	$(BIN)/ltm-eval --model ltm-tiny,ar-tiny --tasks pydocs --output $(DEMO)/results
	$(BIN)/ltm-leaderboard build --results $(DEMO)/results --out $(DEMO)/LEADERBOARD.md

# Tiny models train themselves on first use.
leaderboard: export LTM_HOME = $(DEMO)/home
leaderboard: $(INSTALLED)
	$(BIN)/ltm-eval --model $(TINY) --tasks pydocs --output $(DEMO)/results
	$(BIN)/ltm-leaderboard build --results $(DEMO)/results --out $(DEMO)/LEADERBOARD.md

audit: export LTM_HOME = $(DEMO)/home
audit: leaderboard
	$(BIN)/ltm-eval --model $(TINY) --tasks audit --output $(DEMO)/results
	$(BIN)/ltm-leaderboard build --results $(DEMO)/results --out $(DEMO)/LEADERBOARD.md

check: $(INSTALLED)
	$(BIN)/ltm-leaderboard check --results $(DEMO)/results --out $(DEMO)/LEADERBOARD.md

readme: leaderboard
	$(BIN)/ltm-leaderboard build --results $(DEMO)/results --out $(DEMO)/LEADERBOARD.md --readme README.md

test: $(INSTALLED)
	$(BIN)/python -m pytest

# The one thing that tests take from another world: what checks that pages are accessible.
axe:
	npm install --no-save --no-package-lock --ignore-scripts axe-core@$(AXE)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy tests

clean:
	rm -rf .venv $(DEMO) .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
