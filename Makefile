# `make demo` and `make test` do all set-up themselves: a virtual environment in .venv with the tested versions.
PYTHON ?= python3
VENV = .venv
READY = $(VENV)/.ready
TESTABLE = $(VENV)/.testable
# A process for every core, of one thread each; a process that has nothing left takes over from another.
PYTEST = $(VENV)/bin/python -m pytest -n auto --maxprocesses 4 --dist worksteal

.PHONY: demo test test-long test-learning test-lowest test-newest package package-check docs lint clean

demo: $(READY)
	$(VENV)/bin/iwm demo --out runs/demo

test: $(TESTABLE)
	$(PYTEST)

# Longer forms of what `make test` asserts in short.
test-long: $(TESTABLE)
	$(PYTEST) -m long

# Ten minutes of training against the ranges in tests/learning/ranges.json.
test-learning: $(TESTABLE)
	$(VENV)/bin/python -m pytest -m learning tests/learning

# The suite on the lowest versions of all dependencies that pyproject.toml allows, and on the newest there are, each in
# an environment of its own. Both take an hour and some gigabytes; TESTS chooses fewer. Old packages call what newer
# ones deprecate, which is no fault of ours.
TESTS ?=
test-lowest:
	test -x $(VENV)-lowest/bin/python || $(PYTHON) -m venv $(VENV)-lowest
	$(PYTHON) tools/lowest_versions.py > $(VENV)-lowest/lowest.txt
	$(VENV)-lowest/bin/python -m pip install --quiet --constraint $(VENV)-lowest/lowest.txt --editable '.[app,onnx,embed,track]' $(TESTING)
	$(VENV)-lowest/bin/python -m pytest -W ignore::DeprecationWarning -n auto --maxprocesses 4 --dist worksteal $(TESTS)

test-newest:
	test -x $(VENV)-newest/bin/python || $(PYTHON) -m venv $(VENV)-newest
	$(VENV)-newest/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager --editable '.[app,onnx,embed,track]' $(TESTING)
	$(VENV)-newest/bin/python -m pytest -n auto --maxprocesses 4 --dist worksteal $(TESTS)

# What tests need beside iwm; the notebooks' tests skip without their tools.
TESTING = pytest pytest-xdist hypothesis beartype scikit-learn torchmetrics

# Build sdist and wheel, and use the wheel from an empty folder: with the dependencies of .venv, or with its own from
# the registry (minutes).
package: $(TESTABLE)
	$(VENV)/bin/python tools/check_package.py

package-check: $(TESTABLE)
	$(VENV)/bin/python tools/check_package.py --install

# The site of the documentation, build/site/index.html; every link that leads nowhere ends it.
docs: $(TESTABLE)
	$(VENV)/bin/python tools/build_docs.py

lint: $(TESTABLE)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright

$(READY): pyproject.toml constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[app]'
	touch $@

# What the tests need beside it: all extras.
$(TESTABLE): $(READY)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[app,dev,docs,embed,onnx,track]'
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-lowest $(VENV)-newest
