# Everything runs in a virtual environment of its own, made on first use and kept until `make clean`.
#
#   make demo                          install, then complete a small simulated tissue
#   make test                          install, then run the tests (make test-all: also what takes an hour)
#   make demo PYTHON=python3.12        with another Python (3.11 or newer)
#   make demo TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
#                                      the CPU build of PyTorch, which spares Linux some gigabytes of CUDA libraries

PYTHON ?= python3
VENV ?= .venv
# A version known to work, installed first so that the other requirements find it in place. Any torch>=2.5 will do.
TORCH ?= torch==2.13.0
PYTEST_ARGS ?=
# Processes among which the tests are shared, file by file.
WORKERS ?= 2
EXAMPLE_DATA ?= ../shared/data

bin := $(VENV)/bin
pip := $(bin)/python -m pip --disable-pip-version-check
# Where the methods of the comparison are installed that the package does without; see benchmarks/README.md.
PEER_PYTHON ?= $(bin)/python
BENCHMARK_ARGS ?=

.PHONY: help install demo test test-all test-quick coverage errors lint format types docs linkcheck tutorials picture benchmark benchmark-quick benchmark-ablation benchmark-calibration benchmark-evidence \
	benchmark-images benchmark-prediction benchmark-biology benchmark-domains benchmark-integration benchmark-speed clean
.NOTPARALLEL:
.DELETE_ON_ERROR:

help:
	@echo "make demo        complete a small simulated tissue and write demo/"
	@echo "make test        the tests, some minutes on two cores"
	@echo "make test-all    also the trainings of full length, tutorials on real sections, new bad input and 200 faults; an hour"
	@echo "make test-quick  the tests that take seconds"
	@echo "make coverage    the tests, and which lines and branches they reach"
	@echo "make errors      list what every test of bad input raised, in docs/errors.csv"
	@echo "make lint        ruff: style and format (make format mends what it can)"
	@echo "make types       mypy"
	@echo "make docs        the documentation, into docs/_build/html"
	@echo "make linkcheck   whether links to other sites lead somewhere"
	@echo "make tutorials   run the tutorials and store their output"
	@echo "make picture     draw the picture of the landing page"
	@echo "make benchmark   the comparison with other methods, into benchmarks/results and docs/benchmarks; takes hours and"
	@echo "                 goes on where it was stopped (make benchmark-quick: five small sets once, within an hour)"
	@echo "make benchmark-evidence     what completed values say in sums, tests and correlations, and the audit of six methods; hours"
	@echo "make benchmark-ablation     what each part of the model is worth; about two hours"
	@echo "make benchmark-calibration  whether intervals hold what they promise; some twenty minutes"
	@echo "make benchmark-images  what the histology image adds; about two hours"
	@echo "make benchmark-prediction  whether predictors from images learn better from completed data; about two hours"
	@echo "make benchmark-speed   time and memory, beside other methods; about three hours"
	@echo "make benchmark-domains  domains of the tissue, beside other methods; some two hours"
	@echo "make benchmark-integration  how several sections mix, beside other methods; some twenty minutes"
	@echo "make benchmark-biology  layers, markers and absent genes of four cortex sections; about an hour"
	@echo "make install     only the environment, in $(VENV)"
	@echo "make clean       remove the environment and everything that was built"

# Stamps record which parts of the environment are in place; a change of pyproject.toml brings it up to date.
$(VENV)/.stamp-package: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, and $(PYTHON) is %s; name another: make PYTHON=python3.12" \
		% sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(pip) install --upgrade "pip>=25.1"
	$(pip) install $(TORCH)
	$(pip) install --editable ".[demo]"
	@touch $@

$(VENV)/.stamp-group-%: $(VENV)/.stamp-package
	$(pip) install --group $*
	@touch $@

install: $(VENV)/.stamp-package

demo: $(VENV)/.stamp-package
	$(bin)/lgdist-scvi demo

shared := -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test: $(VENV)/.stamp-group-test
	$(bin)/python -m pytest $(shared) $(PYTEST_ARGS)

test-all: $(VENV)/.stamp-group-test
	LGDIST_FUZZ=$${LGDIST_FUZZ:-300} LGDIST_FAULTS=$${LGDIST_FAULTS:-200} $(bin)/python -m pytest -m "" $(shared) $(PYTEST_ARGS)

test-quick: $(VENV)/.stamp-group-test
	$(bin)/python -m pytest $(shared) -m "not slow" $(PYTEST_ARGS)

coverage: $(VENV)/.stamp-group-test
	$(bin)/python -m coverage erase
	$(bin)/python -m coverage run -m pytest $(PYTEST_ARGS)
	$(bin)/python -m coverage combine --quiet
	$(bin)/python -m coverage report

errors: $(VENV)/.stamp-group-test
	LGDIST_LIST_ERRORS=docs/errors.csv $(bin)/python -m pytest -n 0 -m "not slow" $(PYTEST_ARGS)

lint: $(VENV)/.stamp-group-lint
	$(bin)/ruff check .
	$(bin)/ruff format --check .

format: $(VENV)/.stamp-group-lint
	$(bin)/ruff check --fix .
	$(bin)/ruff format .

types: $(VENV)/.stamp-group-typecheck
	$(bin)/mypy

docs: $(VENV)/.stamp-group-doc
	rm -rf docs/_build docs/generated docs/tutorials
	$(bin)/python -m sphinx -b html -W --keep-going docs docs/_build/html

linkcheck: $(VENV)/.stamp-group-doc
	$(bin)/python -m sphinx -b linkcheck docs docs/_build/linkcheck

# Sections for the stored tutorials; without the folder they would be downloaded, or simulated.
tutorials: $(VENV)/.stamp-group-doc
	LGDIST_EXAMPLE_DATA=$(abspath $(EXAMPLE_DATA)) $(bin)/python docs/run_notebooks.py tutorials/*.ipynb docs/start.ipynb

picture: $(VENV)/.stamp-package
	LGDIST_EXAMPLE_DATA=$(abspath $(EXAMPLE_DATA)) $(bin)/python docs/picture.py

benchmark: $(VENV)/.stamp-package
	$(bin)/python benchmarks/compare.py --peer-python $(PEER_PYTHON) $(BENCHMARK_ARGS)
	$(bin)/python benchmarks/report.py
	$(bin)/python benchmarks/overview.py

benchmark-quick: override BENCHMARK_ARGS += --quick
benchmark-quick: benchmark

benchmark-ablation benchmark-calibration benchmark-images: benchmark-%: $(VENV)/.stamp-package
	$(bin)/python benchmarks/$*.py $(BENCHMARK_ARGS)

benchmark-evidence: $(VENV)/.stamp-package
	$(bin)/python benchmarks/evidence.py $(BENCHMARK_ARGS)
	$(bin)/python benchmarks/audit.py --peer-python $(PEER_PYTHON) $(BENCHMARK_ARGS)

benchmark-prediction: $(VENV)/.stamp-package
	$(bin)/python benchmarks/predict.py $(BENCHMARK_ARGS)

benchmark-biology benchmark-domains benchmark-integration benchmark-speed: benchmark-%: $(VENV)/.stamp-package
	$(bin)/python benchmarks/$*.py --peer-python $(PEER_PYTHON) $(BENCHMARK_ARGS)

clean:
	rm -rf $(VENV) build dist demo docs/_build docs/generated docs/tutorials .pytest_cache .mypy_cache .ruff_cache \
		.hypothesis .coverage*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
