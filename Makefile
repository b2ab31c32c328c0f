# `make demo` asks the embedded model about a clip, `make test` runs the tests, `make lint` checks the style.
# Each creates .venv and installs what it needs the first time, and again when pyproject.toml changes.

PYTHON ?= python3
VENV := .venv
# A file's fixtures are made once, and the longest files are first, as tests/conftest.py says.
PARALLEL := --numprocesses 2 --dist loadscope --no-loadscope-reorder
# Not those of decoding, which has nothing to do with transformers.
FLOOR_TESTS := tests/modeling tests/test_golden_parity.py --ignore-glob="*/test_video_[dest]*"
PIP_INSTALL := $(VENV)/bin/python -m pip install --disable-pip-version-check

.PHONY: demo test lint
.NOTPARALLEL:

demo: $(VENV)/.installed-demo
	$(VENV)/bin/python recipes/tiny/demo.py --clip demo/clip.mp4

# One thread: the models of the tests are so small that more threads only wait for each other. The model, the processor
# and parity with the original are tested on the oldest supported transformers first, then everything on the installed one.
test: export OMP_NUM_THREADS = 1
test: export LLAMA_VID_FLOOR = $(CURDIR)/$(VENV)/floor
test: $(VENV)/.installed-test $(VENV)/.installed-floor
	PYTHONPATH="$(LLAMA_VID_FLOOR)" $(VENV)/bin/python -m pytest -q $(PARALLEL) $(FLOOR_TESTS)
	$(VENV)/bin/python -m pytest $(PARALLEL)

lint: $(VENV)/.installed-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

$(VENV)/.created:
	@$(PYTHON) -c "import sys; sys.exit('Python 3.11 or newer is needed: make PYTHON=python3.12' if sys.version_info < (3, 11) else 0)"
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.installed-demo: pyproject.toml | $(VENV)/.created
	$(PIP_INSTALL) --editable .
	touch $@

# The tests' installation holds the demo's.
$(VENV)/.installed-test: pyproject.toml | $(VENV)/.created
	$(PIP_INSTALL) --editable ".[dev]"
	touch $(VENV)/.installed-demo $@

# The oldest supported transformers, in a folder that tests put first on the path of a process of their own. Everything
# else comes from the environment.
$(VENV)/.installed-floor: Makefile | $(VENV)/.installed-test
	rm -rf $(VENV)/floor
	$(PIP_INSTALL) --no-deps --target $(VENV)/floor \
		"transformers==5.10.*" "huggingface-hub<2" "tokenizers>=0.22,<=0.23.0"
	touch $@
