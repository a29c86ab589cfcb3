# make search   set up, search the bundled digits study, report it
# make test     the test suite          make check   format, lint, types, floors
# make coverage the same with the share of lines that it runs, which takes half as long again
# make laws     what is tried on random examples, on twenty times as many
# make faults   kills and fuzzes, all of them: writes tests/faults/RESULTS.md
# make bench    the quick benchmarks: they never fail, and write tests/benchmarks/RESULTS.md
#               bench-whole, against plain Optuna, and bench-quality, of what is found, take half an hour each,
#               bench-peers, against Ray Tune and Syne Tune in .venv-peers, a quarter, bench-tables an hour
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
PEERS := .venv-peers/.ready

.PHONY: search test coverage laws check format faults bench bench-whole bench-quality bench-peers bench-tables clean

search: $(READY)
	$(BIN)/tunecli search digits
	$(BIN)/tunecli report digits

test: $(READY)
	$(BIN)/pytest --numprocesses 2 --dist worksteal

coverage: $(READY)
	$(BIN)/pytest --numprocesses 2 --dist worksteal --cov --cov-report=term:skip-covered --cov-fail-under=90

laws: $(READY)
	EXAMPLES=20 $(BIN)/pytest --numprocesses 2 --dist worksteal -m hypothesis

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python -m tests.forbidden
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

faults: $(READY)
	$(BIN)/pytest tests/faults --full --durations=5

bench: $(READY)
	$(BIN)/python -m tests.benchmarks.slots narrow 32 --write
	$(BIN)/python -m tests.benchmarks.slots narrow mix --write
	$(BIN)/python -m tests.benchmarks.slots wide mix --write
	$(BIN)/python -m tests.benchmarks.zoo --write
	$(BIN)/python -m tests.benchmarks.cores --write
	$(BIN)/python -m tests.benchmarks.graphs --write
	$(BIN)/python -m tests.benchmarks.occupied --write
	$(BIN)/python -m tests.benchmarks.outside --write
	$(BIN)/python -m tests.benchmarks.outside --elsewhere --write
	$(BIN)/python -m tests.benchmarks.first --write
	$(BIN)/python -m tests.benchmarks.persistence --write
	$(BIN)/python -m tests.benchmarks.proposals --write
	$(BIN)/python -m tests.benchmarks.streaming --write

bench-whole: $(READY)
	$(BIN)/python -m tests.benchmarks.whole --write

bench-quality: $(READY)
	$(BIN)/python -m tests.benchmarks.quality --write

bench-peers: $(READY) $(PEERS)
	$(BIN)/python -m tests.benchmarks.peers.compare .venv-peers/bin/python --write

bench-tables: $(READY)
	$(BIN)/python -m tests.benchmarks.tables

clean:
	rm -rf .venv .venv-peers

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	PIP_CONSTRAINT=constraints.txt $(BIN)/pip install --quiet --editable ".[dev]"
	touch $(READY)

$(PEERS): tests/benchmarks/peers/requirements.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install --quiet --requirement tests/benchmarks/peers/requirements.txt
	touch $(PEERS)
