# `make demo` and `make test` are all that a newcomer needs; both are safe to repeat.
PYTHON ?= python3.11
BIN := .venv/bin
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export RAY_USAGE_STATS_ENABLED := 0
# Two workers on two cores: one thread each, or they wait for each other.
export OMP_NUM_THREADS := 1

.PHONY: install demo consortium proxy test test-slow check bench wheelhouse images lint-deploy

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
	$(BIN)/pytest -n 2 --dist loadgroup -m deploy tests/deploy -rs

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
	$(BIN)/pytest -n 2 --dist loadgroup -m slow || test $$? -eq 5

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2 tests/unit

bench: install
	$(BIN)/python -m oncofed_simulations.bench

# Where there is no network: every pinned wheel in one folder with their hashes, and a trial installation from it alone.
wheelhouse: install
	$(BIN)/python deploy/wheelhouse.py fill dist/wheelhouse
	$(BIN)/python deploy/wheelhouse.py try dist/wheelhouse

# Needs root, buildah and debootstrap; says so where they are missing.
images:
	sh deploy/images.sh dist/wheelhouse dist/images

# Apart from .venv: what these need and what oncofed needs exclude each other.
.venv-lint/.installed: constraints-lint.txt
	$(PYTHON) -m venv .venv-lint
	.venv-lint/bin/pip install --quiet --disable-pip-version-check --no-deps -r constraints-lint.txt
	touch $@

lint-deploy: .venv-lint/.installed
	.venv-lint/bin/yamllint --strict --config-file deploy/yamllint.yaml deploy
	.venv-lint/bin/hadolint deploy/Containerfile
	.venv-lint/bin/check-jsonschema --builtin-schema vendor.compose-spec deploy/compose.yaml
	.venv-lint/bin/kubernetes-validate --strict deploy/kubernetes/*.yaml
	.venv-lint/bin/checkov --skip-download --quiet --compact --framework kubernetes --directory deploy/kubernetes
	@# It knows an image recipe by the name of the file.
	mkdir -p dist/lint && cp deploy/Containerfile dist/lint/Dockerfile
	.venv-lint/bin/checkov --skip-download --quiet --compact --framework dockerfile --directory dist/lint
