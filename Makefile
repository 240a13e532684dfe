PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed
# Two test processes with one arithmetic thread each: on two cores that is quicker than the reverse.
TEST_ENV := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 HF_HUB_OFFLINE=1

.PHONY: demo test lint format bench clean

demo: $(INSTALLED)
	$(VENV)/bin/manifold demo -w demo-out

test: $(INSTALLED)
	$(TEST_ENV) $(VENV)/bin/python -m pytest -n 2 --dist worksteal

lint: $(INSTALLED)
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

format: $(INSTALLED)
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

bench: $(INSTALLED)
	@for script in benchmarks/*.py; do echo "== $$script"; $(VENV)/bin/python $$script || exit 1; done

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) demo-out out
