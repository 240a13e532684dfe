PYTHON ?= python3
VENV := .venv
INSTALLED := $(VENV)/.installed
# Two test processes with one arithmetic thread each: on two cores that is quicker than the reverse.
TEST_ENV := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 HF_HUB_OFFLINE=1

# Everything that open_clip needs. torchvision must be built for the torch beside it, so the two are named as a pair.
CLIP_VENV := .venv-clip
CLIP_INSTALLED := $(CLIP_VENV)/.installed
CLIP_TORCH := torch==2.14.1 torchvision==0.29.1
CLIP_TESTS := $(wildcard tests/test_index_clip*.py tests/test_index_spaces*.py tests/test_apps_spaces.py tests/test_apps_clip*.py)

.PHONY: demo test test-clip lint format bench clean

demo: $(INSTALLED)
	$(VENV)/bin/manifold demo -w demo-out

test: $(INSTALLED)
	$(TEST_ENV) $(VENV)/bin/python -m pytest -n 2 --dist worksteal

# The full environment may not skip: a test that would is a failure.
test-clip: $(CLIP_INSTALLED)
	$(TEST_ENV) $(CLIP_VENV)/bin/python -m pytest -n 2 --dist worksteal -p tests.no_skips $(CLIP_TESTS) \
	  "tests/test_docs_shell.py::test_the_shell_lines_of_a_page_run[docs/clip.md]"

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

$(CLIP_INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear $(CLIP_VENV)
	grep -v '^torch==' constraints.txt > $(CLIP_VENV)/constraints.txt
	$(CLIP_VENV)/bin/python -m pip install --disable-pip-version-check --quiet --retries 5 \
	  -c $(CLIP_VENV)/constraints.txt $(CLIP_TORCH) -e '.[clip,dev]'
	touch $@

clean:
	rm -rf $(VENV) $(CLIP_VENV) demo-out out
