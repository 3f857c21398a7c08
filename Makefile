# make demo: set up .venv and train one trial on the embedded default.   make test: set up and run the tests.
# make lint, make docs, make coverage: what continuous integration checks besides.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-gpu test-slow coverage benchmark benchmark-data benchmark-engines benchmark-stacks benchmark-cuda \
	benchmark-detection benchmark-field benchmark-runs benchmark-explain benchmark-repair lint docs hooks clean

demo: .venv/installed
	$(BIN)/python -m stability.train optimizer=official aug=strong

test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test-gpu: .venv/installed
	$(BIN)/python -m pytest -m gpu -rs

test-slow: .venv/installed
	$(BIN)/python -m pytest -m slow

coverage: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --cov --cov-report=term --cov-report=html

benchmark: .venv/installed
	$(BIN)/python -m experiments.benchmarks.step_speed

benchmark-data: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m experiments.benchmarks.data_speed

benchmark-engines: .venv/installed
	$(BIN)/python -m experiments.benchmarks.engine_speed

benchmark-stacks: .venv/installed
	$(BIN)/python -m pip install --quiet -e '.[dev,benchmark]' -c constraints.txt
	$(BIN)/python -m experiments.benchmarks.stack_speed

benchmark-cuda: .venv/installed
	$(BIN)/python -m experiments.benchmarks.cuda_speed $(OFFICIAL) $(if $(DATA),--data $(DATA)) $(if $(OFFICIAL_PYTHON),--python $(OFFICIAL_PYTHON))

benchmark-detection: .venv/installed experiments/detection/corpus.npz
	$(BIN)/python -m experiments.detection.score

benchmark-field: .venv/installed
	$(BIN)/python -m pip install --quiet -e '.[dev,benchmark]' -c constraints.txt
	OMP_NUM_THREADS=1 $(BIN)/python -m experiments.detection.field.benchmark $(or $(SHARED),../shared)

benchmark-runs: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m experiments.benchmarks.runs_speed

benchmark-explain: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m experiments.explain.benchmark test
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m experiments.explain.real test
	OMP_NUM_THREADS=1 $(BIN)/python -m experiments.explain.honesty

benchmark-repair: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m experiments.repair.benchmark test

experiments/detection/corpus.npz:
	$(BIN)/python -m pip install --quiet -e '.[dev,benchmark]' -c constraints.txt
	OMP_NUM_THREADS=1 $(BIN)/python -m experiments.detection.corpus build
	$(BIN)/python -m experiments.detection.corpus pack

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: .venv/docs-installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

hooks: .venv/installed
	$(BIN)/pre-commit install

.venv/docs-installed: .venv/installed
	$(BIN)/python -m pip install --quiet -e '.[dev,docs]' -c constraints.txt
	touch $@

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev]' -c constraints.txt
	touch $@

clean:
	rm -rf .venv build dist site htmlcov .coverage
