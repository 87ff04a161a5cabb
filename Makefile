# The loop of a day: `make demo`, `make test`, `make lint`, `make bench`. Each makes .venv first if it is missing.

PYTHON ?= python3
BIN := .venv/bin

export TF_CPP_MIN_LOG_LEVEL ?= 2

PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

.PHONY: demo test test-all pythons fuzz soak lint format bench verdicts gpu-compile gpu-report docs clean

# What the commands need. The stamp, not the folder: an install that was interrupted is done again.
.venv/.installed: pyproject.toml setup.py pipeline/_native.c pipeline/_shrink.c pipeline/_pixels.h constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else "shardline needs Python 3.11 to 3.13; make PYTHON=/path/to/python3.11")'
	@echo "installing TensorFlow and what else shardline needs into .venv: some 700 MB to download, 3 GB on disk, 2 to 10 minutes, once"
	$(PYTHON) -m venv .venv
	$(PIP) .
	touch $@

# And what developing needs besides.
.venv/.dev: .venv/.installed
	$(PIP) '.[dev]'
	touch $@

.venv/.docs: .venv/.installed
	$(PIP) '.[docs]'
	touch $@

# From nothing to a trained, evaluated model: the commands of the README on drawn images.
demo: .venv/.installed
	@echo "the demo: draws 720 images, converts, trains and evaluates a small VGG16; about 3 minutes on two cores, 420 MB in demo/"
	rm -rf demo
	$(BIN)/shardline-sample-data --output demo/photos
	$(BIN)/shardline-convert --source demo/photos --output demo/data --size 54 --splits train=0.75,validation=0.05,test=0.2
	$(BIN)/shardline-train --data demo/data --workdir demo/run --weights none --head gap --dropout 0 --phases "all:6@2e-2" \
	  --image_size 48 --crop_area 0.7,1 --crop_ratio 0.9,1.11 --global_batch_size 32 --logical_cpus 2
	$(BIN)/shardline-evaluate --run demo/run --data demo/data --split test --output demo/evaluation
	$(BIN)/shardline-predict --run demo/run --data demo/data --split test --output demo/predictions.csv --gallery demo/predictions.png
	@echo; echo "Look at these:"; ls demo/data/report.html demo/run/plots/*.png demo/evaluation/*.png demo/predictions.png

# One file is one worker's, so that what a file prepares for its tests is prepared once. What Python compiles is kept:
# making pytest's bytecode of every test file anew takes a third of the time that it takes to collect the tests.
test: lint
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# Everything that needs no GPU, with the trackers and the packagers where they install, and how much of the code it ran:
# in this process, in its threads and in the processes that it started.
export COVERAGE_FILE := $(CURDIR)/build/coverage/data
test-all: lint docs
	-$(PIP) '.[mlflow,wandb,release]'
	rm -rf build/coverage
	mkdir -p build/coverage
	$(BIN)/coverage run -m pytest -m 'not gpu' $(TESTS); code=$$?; \
	  $(BIN)/coverage combine --quiet && $(BIN)/coverage report && exit $$code

# The fast tests with every Python that is declared and on PATH; those that are not there are named as skipped.
# `make pythons TESTS=tests/pipeline` runs a part of them.
pythons: .venv/.dev
	$(PIP) '.[release]'
	$(BIN)/tox run -- $(TESTS)

# Ten minutes of hostile bytes for every reader, FUZZ_SECONDS=60 for less, also out of images of yours: FUZZ_SOURCE=DIR.
# With atheris where it installs.
FUZZ_SECONDS ?= 600
fuzz: .venv/.dev
	-$(PIP) '.[fuzz]'
	$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS) $(if $(FUZZ_SOURCE),--source $(FUZZ_SOURCE))

# The same time of kills, full disks, damage and second owners; `make soak SOAK_SOURCE=DIR` takes images of yours.
SOAK_SECONDS ?= 600
soak: .venv/.dev
	$(BIN)/python -m tests.soak --seconds $(SOAK_SECONDS) $(if $(SOAK_SOURCE),--source $(SOAK_SOURCE))

lint: .venv/.dev build/typing/shardline
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy --no-error-summary

# mypy reads no editable install: a folder of links gives it the names that users import.
build/typing/shardline: Makefile
	rm -rf $@ && mkdir -p $@
	for folder in pipeline trainer tools benchmarks; do ln -s ../../../$$folder $@/$$folder; done

format: .venv/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Pipelines of a known bottleneck, measured and judged; fails on a wrong word. Needs an otherwise idle machine.
verdicts: .venv/.installed
	$(BIN)/python -m shardline.benchmarks.verdicts

# The documentation site, without network, into build/site; warnings are errors.
docs: .venv/.docs build/typing/shardline
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	$(BIN)/codespell docs examples *.md pipeline tools trainer benchmarks
	@echo build/site/index.html

# Which stage binds and what would help, on drawn images; `make bench BENCH_DATA=DIR` takes a dataset of yours.
BENCH_DATA ?= benchmarks/results/local/data
benchmarks/results/local/data/manifest.json: .venv/.installed
	rm -rf benchmarks/results/local/photos
	$(BIN)/shardline-sample-data --output benchmarks/results/local/photos
	$(BIN)/shardline-convert --source benchmarks/results/local/photos --output benchmarks/results/local/data --overwrite

bench: .venv/.installed $(if $(filter benchmarks/%,$(BENCH_DATA)),benchmarks/results/local/data/manifest.json)
	$(BIN)/shardline-benchmark --data $(BENCH_DATA) --suite short --repeats 3 --output benchmarks/results/local

# The trainer's programs, compiled for GPUs that are not here (takes 1.2 GB, in a Python of its own).
.venv-xla/.installed: requirements-xla.txt
	$(PYTHON) -m venv .venv-xla
	.venv-xla/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement $<
	touch $@

gpu-compile: .venv/.installed .venv-xla/.installed
	$(BIN)/python -m shardline.benchmarks.gpu.compile

# Eight minutes on a machine with a GPU: every figure as JSON; `make gpu-report DATA=DIR` with a dataset of some thousand.
OUTPUT ?= benchmarks/results/local/gpu
gpu-report: .venv/.installed
	$(BIN)/python -m shardline.benchmarks.gpu.report --output $(OUTPUT) $(if $(DATA),--data $(DATA))

clean:
	rm -rf .venv .venv-xla build pipeline/*.so *.egg-info .pytest_cache .mypy_cache .ruff_cache demo
