# Every command installs what it needs into .venv first, at the versions of requirements.lock.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready
# On two processes; a file is tested by one of them, and files begin in the order of tests/conftest.py.
FAST := -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test check serve openapi bench learn slow lock clean
.DEFAULT_GOAL := help

help:
	@echo "make demo   the whole story in three minutes: register, meta-train, version, adapt, act"
	@echo "make test   the fast test suite, on SQLite and PostgreSQL"
	@echo "make check  format, lint, types and the fast tests"
	@echo "make slow   the slow tests: minutes of learning"
	@echo "make bench  every benchmark of speed, a ratio each: minutes"
	@echo "make learn  every benchmark of learning, a table each: hours"
	@echo "make openapi  renew docs/openapi.json, after a change of the HTTP API that is meant"
	@echo "make serve  a server on 127.0.0.1:8000 with its data in ./var"

$(READY): requirements.lock pyproject.toml client/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; say make PYTHON=..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock \
		--editable client --editable '.[dev]'
	@touch $(READY)

demo: $(READY)
	@$(BIN)/python examples/demo.py

test: $(READY)
	@$(BIN)/python -m pytest $(FAST)

slow: $(READY)
	@$(BIN)/python -m pytest -m slow

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python client/generate_sync.py --check
	$(BIN)/python -m pytest $(FAST)

serve: $(READY)
	@$(BIN)/headstart-server serve

openapi: $(READY)
	@$(BIN)/headstart-server openapi > docs/openapi.json

bench: $(READY)
	@for benchmark in benchmarks/serving.py benchmarks/bench_*.py; do $(BIN)/python $$benchmark || exit 1; done

learn: $(READY)
	@for benchmark in benchmarks/learn_*.py; do $(BIN)/python $$benchmark || exit 1; done

lock:
	@rm -rf .venv && $(MAKE) --no-print-directory .lock-install
	@{ echo "# Every version that the commands of the Makefile and the image install. Renew: make lock"; \
		$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu//'; } > requirements.lock

.PHONY: .lock-install
.lock-install:
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable client --editable '.[dev]'

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache
