# `make demo` and `make test` do all their set-up: they need nothing but Python 3.11 or later and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint types bench clean

demo: $(VENV)/.demo
	@mkdir -p demo
	@$(BIN)/python -c "import skimage.data; from PIL import Image; Image.fromarray(skimage.data.astronaut()).save('demo/astronaut.png')"
	$(BIN)/liif upscale demo/astronaut.png --scale 2.7 --overwrite

test: $(VENV)/.dev lint types
	$(BIN)/python -m pytest

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/bench.py
	$(BIN)/python benchmarks/training.py

$(VENV)/.python:
	$(PYTHON) -m venv $(VENV)
	@touch $@

# scikit-image brings the photograph.
$(VENV)/.demo: $(VENV)/.python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable . scikit-image
	@touch $@

$(VENV)/.dev: $(VENV)/.python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) demo dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
