# Every target makes its own environment in .venv from a bare python3 and uses it again afterwards.
PYTHON ?= python3
BIN := .venv/bin
BACKENDS := jax tensorflow torch

.PHONY: quickstart test lint docs package benchmark clean $(addprefix test-,$(BACKENDS))

quickstart: .venv/.quickstart  ## the whole story in a few minutes; pictures in quickstart_output/
	KERAS_BACKEND=jax $(BIN)/keras-igpt quickstart

test: lint $(addprefix test-,$(BACKENDS))  ## lint, types, and the whole suite on each backend

$(addprefix test-,$(BACKENDS)): test-%: .venv/.dev
	@echo "== $* =="
	KERAS_BACKEND=$* OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal

lint: .venv/.dev  ## ruff and mypy
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: .venv/.docs  ## the documentation in site/, without a network; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

package: .venv/.dev  ## wheel and sdist in dist/; the wheel alone is tried on each backend in an environment of its own
	rm -rf dist .venv/package
	$(BIN)/python -m build
	$(PYTHON) -m venv .venv/package
	.venv/package/bin/python -m pip install --quiet "$$(ls dist/*.whl)[jax,tensorflow]" torch==2.13.0
	cd .venv && for backend in $(BACKENDS); do \
		KERAS_BACKEND=$$backend package/bin/python ../tests/smoke.py || exit 1; \
	done

benchmark: .venv/.dev  ## prints the tables of benchmarks/README.md; DATA_DIR=… adds the data pipeline and the probes
	KERAS_BACKEND=jax $(BIN)/python benchmarks/normalization.py
	$(BIN)/python benchmarks/train_step.py
	$(BIN)/python benchmarks/train_step.py --scaling
	$(BIN)/python benchmarks/generation.py
	$(BIN)/python benchmarks/palette_encoding.py
	$(if $(DATA_DIR),$(BIN)/python benchmarks/data_pipeline.py --data-dir $(DATA_DIR))
	$(if $(DATA_DIR),$(BIN)/python benchmarks/logistic_regression.py --data-dir $(DATA_DIR))
	$(BIN)/python benchmarks/curation.py duplicates
	$(if $(DATA_DIR),for what in separate kill speed; do $(BIN)/python benchmarks/curation.py $$what --data-dir $(DATA_DIR); done)

clean:
	rm -rf dist site .venv .cache .mypy_cache .pytest_cache .ruff_cache *.egg-info

.venv/bin/python:
	$(PYTHON) -m venv .venv

# The stamp of an extra is newer than pyproject.toml once it is installed.
.venv/.quickstart .venv/.dev .venv/.docs: .venv/.%: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	touch $@
