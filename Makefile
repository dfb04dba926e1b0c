# `make demo` and `make test` are all that a newcomer needs; both are safe to repeat.
PYTHON ?= python3.11
BIN := .venv/bin
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export RAY_USAGE_STATS_ENABLED := 0
# Two workers on two cores: one thread each, or they wait for each other.
export OMP_NUM_THREADS := 1

.PHONY: install demo consortium proxy test test-slow check bench

install: .venv/.installed

.venv/bin/python:
	$(PYTHON) -m venv .venv

# torch first and by itself: pip then takes the exact pin and never a newer CUDA build.
# No build isolation: pyradiomics builds from source and needs numpy and versioneer at hand.
.venv/.installed: pyproject.toml constraints.txt constraints-build.txt | .venv/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check -r constraints-build.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[dev]'
	$(BIN)/pip check
	touch $@

demo: install
	$(BIN)/oncofed-simulate run simulations/studies/demo.toml --out out/demo

# Real processes: an aggregator behind its proxy, three sites each with daemon and gate, from enrolment to the report.
consortium: install proxy
	$(BIN)/pytest -m deploy tests/deploy -rs

# Where root may install it, it is installed; elsewhere the tests that need it say so and are skipped.
proxy:
	@PATH="$$PATH:/usr/sbin:/usr/local/sbin"; command -v nginx >/dev/null \
	|| { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq && apt-get install -qq -y nginx-light; } \
	|| echo "nginx is missing and cannot be installed from here: install it (apt-get install nginx-light), then run this again"

# Tests of one group share a long fixture, so one worker has them.
test: install proxy
	$(BIN)/pytest -n 2 --dist loadgroup

# pytest ends with 5 where no test carries the marker.
test-slow: install proxy
	$(BIN)/pytest -n 2 -m slow || test $$? -eq 5

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2 tests/unit

bench: install
	$(BIN)/python -m oncofed_simulations.bench
