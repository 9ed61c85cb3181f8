# Every target sets up what it needs in $(VENV); nothing else has to be installed but Python.
PYTHON ?= python3
# One a Python: `make test PYTHON=python3.13` works in .venv-python3.13.
VENV ?= .venv$(if $(filter-out python3,$(PYTHON)),-$(notdir $(PYTHON)))
RUN := $(VENV)/bin/python
# Runs, their files and their pages.
SHORT := $(addprefix tests/,run/test_command_line.py export/test_files.py report/test_report.py)

.PHONY: demo test slow oldest lint format docs clean

# Prunes a network to 5 % of its weights on 5,000 real digits, into a file of 22 kB.
demo: $(VENV)/.installed
	$(RUN) -m harp_jax.main --config=configs/mnist_cnn.py --workdir=runs/mnist
	@echo "The small network is runs/mnist/network.safetensors. Open runs/mnist/report/index.html"

test: $(VENV)/.installed-dev
	$(RUN) -m pytest -n 2 --dist loadfile --durations=10

slow: $(VENV)/.installed-dev
	$(RUN) -m pytest -n 2 --dist loadfile -m "slow and not hours" -x

# With the oldest versions that pyproject.toml allows.
oldest: $(VENV)-oldest/.installed
	$(VENV)-oldest/bin/python -m pytest -n 2 --dist loadfile -W default $(SHORT)

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/pyright --pythonpath $(RUN)

format: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

# A site of pages without any network; warnings are errors, and so are names that lead nowhere.
docs: $(VENV)/.installed-dev
	$(RUN) -m sphinx -b html -W --keep-going -n -q docs docs/_build/html
	@echo "Open docs/_build/html/index.html"

clean:
	rm -rf $(VENV) $(VENV)-oldest build dist docs/_build *.egg-info

$(VENV)/.installed: pyproject.toml setup.cfg setup.py
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet -e .
	touch $@

$(VENV)-oldest/.installed: pyproject.toml setup.cfg setup.py .ci/oldest.py
	$(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/python .ci/oldest.py >$(VENV)-oldest/constraints.txt
	$(VENV)-oldest/bin/python -m pip install --quiet -c $(VENV)-oldest/constraints.txt \
		-e ".[onnx,parquet]" beartype hypothesis pytest pytest-xdist
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(RUN) -m pip install --quiet -e ".[dev]"
	touch $@
