# `make demo` and `make test` do all set-up themselves: a virtual environment in .venv with the tested versions.
PYTHON ?= python3
VENV = .venv
READY = $(VENV)/.ready
# A process for every core, of one thread each; a process that has nothing left takes over from another.
PYTEST = $(VENV)/bin/python -m pytest -n auto --maxprocesses 4 --dist worksteal

.PHONY: demo test test-long test-learning lint clean

demo: $(READY)
	$(VENV)/bin/iwm demo --out runs/demo

test: $(READY)
	$(PYTEST)

# Longer forms of what `make test` asserts in short.
test-long: $(READY)
	$(PYTEST) -m long

# Ten minutes of training against the ranges in tests/learning/ranges.json.
test-learning: $(READY)
	$(VENV)/bin/python -m pytest -m learning tests/learning

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright

$(READY): pyproject.toml constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[app,dev]'
	touch $@

clean:
	rm -rf $(VENV)
