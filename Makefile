# make = check and test. Every target sets up .venv by itself.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
TORCH  := $(shell grep '^torch==' constraints.txt)

.PHONY: all install test check fix pytest bench demo demo-base clean
all: test

install: $(STAMP)
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet '$(TORCH)'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --level error

pytest: install
	$(BIN)/python -m pytest -n 2

test: check pytest

fix: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Speed and memory beside PEFT, into benchmarks/results; on an idle machine. MINUTES is for each.
MINUTES ?= 14
bench: install
	for name in training generation loading parity; do \
		$(BIN)/python -W ignore benchmarks/$$name.py --minutes $(MINUTES) || exit 1; \
	done

demo: install
	$(BIN)/graft demo

# Pretrain the bundled demo base model again, from its seed.
demo-base: install
	$(BIN)/python -m graft.demo.pretrain

clean:
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .ruff_cache
