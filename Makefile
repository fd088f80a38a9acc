# The words a contributor types, and CI types the same. The virtual environment is made once and kept.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo wheel test proofs test-all test-lowest test-pythons lint docs bench gpu ablations bare ci

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## make .venv with everything in it, at the versions of constraints.txt

# torch goes first and alone, so that no looser requirement fetches another build of it.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)" -c constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: setup  ## train on the embedded digits and make images: minutes on a laptop
	$(BIN)/python examples/digits.py

wheel: setup  ## build dist/dpdm-VERSION-py3-none-any.whl, for `pip install` into an environment of your own
	$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

test: setup  ## everything that takes seconds and needs no GPU
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow and not proof and not gpu" -n 2

proofs: setup  ## what takes longer: injected faults, killed runs, hostile releases, several processes, audits
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "proof and not slow and not gpu" -n 2

test-all: setup  ## every test, the slow ones too; what needs an absent data set skips and says so
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

# All but torch at the lowest version that pyproject.toml allows; torch stays that of constraints.txt: wheels of older
# ones bring gigabytes of CUDA with them, and the first that it allows has none for each Python.
test-lowest:  ## the fast tests at the lowest versions that are allowed
	test -x .venv-lowest/bin/python || $(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/pip install --quiet "$$(grep '^torch==' constraints.txt)" uv
	grep '^torch==' constraints.txt | .venv-lowest/bin/uv pip compile --quiet --resolution lowest-direct --extra dev \
		--no-annotate --constraint /dev/stdin pyproject.toml | grep -v '^torch==\|^nvidia-\|^cuda-\|^triton==' > .venv-lowest/lowest.txt
	.venv-lowest/bin/pip install --quiet -c .venv-lowest/lowest.txt -e ".[dev]"
	OMP_NUM_THREADS=1 .venv-lowest/bin/pytest -m "not slow and not proof and not gpu" -n 2

test-pythons:  ## the fast tests on Python 3.11 to 3.13; what is not installed is skipped, and said
	test -x .venv-nox/bin/nox || { $(PYTHON) -m venv .venv-nox && .venv-nox/bin/pip install --quiet "nox[uv]"; }
	.venv-nox/bin/nox

lint: setup  ## style, formatting, types, who may import whom, and the files of containers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/hadolint Containerfile Containerfile.cuda

docs: setup  ## build the documentation into docs/_build/html; a warning is an error
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html

bench: setup  ## measure private steps beside plain ones and Opacus, into docs/results.md: a quarter of an hour
	$(BIN)/python benchmarks/clipping.py --render docs/results.md

# Not by `setup`: a bare machine has no network. What must be there: docs/guide/gpu-and-cluster.md.
gpu:  ## measure all of it on a GPU by PYTHON=..., into docs/results.md: 25 minutes at most, goes on where it stopped
	$(PYTHON) benchmarks/gpu.py; code=$$?; $(PYTHON) benchmarks/gpu.py --render docs/results.md; exit $$code

ablations: setup  ## repeat the paper's ablations in small: hours; the same command goes on where it stopped
	$(BIN)/python benchmarks/ablations.py

bare: setup  ## install the wheel into an environment of its own, and make and verify a release there: a minute or two
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/integration/test_package.py -k "files or bare"

ci: setup  ## what must pass before a change goes in
	$(MAKE) lint
	$(MAKE) bare
	$(MAKE) test
	$(MAKE) proofs
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/gpu.py --device cpu --seconds 20
