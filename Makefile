# Two commands on a fresh machine with Python >= 3.11 and make: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
OUT ?= out/demo
BIN := $(VENV)/bin

.PHONY: help setup demo demo-train test test-newest gpu gpu-train timm-suite docs lint format clean clients

help:
	@echo "make demo    run the models that ship: pictures at four sizes, a few seconds of piano, a page (half a minute)"
	@echo "make demo-train   train on the embedded images and sounds, evaluate at other resolutions (about 5 minutes)"
	@echo "make test    run the tests"
	@echo "make test-newest   run the tests of kernels, layers and models on the newest torch"
	@echo "make gpu     measure on a GPU: speed beside timm's, memory, tests (5 minutes)"
	@echo "make gpu-train   train CIFAR-10 on a GPU (8 minutes; DATA=folder of CIFAR-10) and evaluate at four sizes"
	@echo "make timm-suite   run timm's own tests of its models on ours (K='name or name' chooses)"
	@echo "make clients run timm's scripts, transformers, fastai, … on our models, those that are installed"
	@echo "make docs    build the documentation site in out/site"
	@echo "make lint    check style and types"
	@echo "make setup   make the virtual environment in $(VENV) (done by the others when needed)"

setup: $(VENV)/.made

$(VENV)/.made: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/python examples/demo.py out=$(OUT)

# Images: S4ND and a convolution of equal size, side by side with one thread each. Audio follows.
demo-train: setup
	@mkdir -p $(OUT)
	$(BIN)/python train.py configs/demo/shapes_conv2d.yaml out=$(OUT)/conv2d overwrite=true >$(OUT)/conv2d.log 2>&1 & other=$$!; \
	$(BIN)/python train.py configs/demo/shapes_s4nd.yaml out=$(OUT)/s4nd overwrite=true || { kill $$other; exit 1; }; \
	wait $$other || { cat $(OUT)/conv2d.log; exit 1; }
	for run in s4nd conv2d; do $(BIN)/python -m s4nd.evaluate checkpoint=$(OUT)/$$run resample=true || exit 1; done
	$(BIN)/python -m s4nd.training.report $(OUT)/s4nd/evaluation.json $(OUT)/conv2d/evaluation.json table=$(OUT)/resolution.txt picture=$(OUT)/resolution.png
	$(BIN)/python train.py configs/demo/sashimi.yaml out=$(OUT)/sashimi overwrite=true
	$(BIN)/s4nd generate checkpoint=$(OUT)/sashimi seconds=2 temperature=0.9 out=$(OUT)/plucked.wav
	@echo
	@cat $(OUT)/resolution.txt
	@echo
	@echo "accuracy against resolution: $(OUT)/resolution.png"
	@echo "generated sound:             $(OUT)/plucked.wav, its spectrogram $(OUT)/plucked.png"

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

# Kernels, ops, layers and models on the newest torch that installs, in an environment of its own.
test-newest:
	$(PYTHON) -m venv $(VENV)-newest
	$(VENV)-newest/bin/python -m pip install --quiet torch torchvision
	$(VENV)-newest/bin/python -m pip install --quiet --no-deps torchaudio
	$(VENV)-newest/bin/python -m pip install --quiet '.[export,fast,video]' pytest pytest-xdist scipy
	OMP_NUM_THREADS=1 $(VENV)-newest/bin/python -m pytest -n 2 tests/ops tests/kernels tests/layers tests/models tests/interop

# SETUP= runs it with the python at hand, where nothing can be installed: make gpu SETUP= BIN=/usr/bin
SETUP ?= setup
gpu: $(SETUP)
	PYTHONPATH=. $(BIN)/python benchmarks/gpu.py out=out/gpu

DATA ?= data/cifar10
gpu-train: $(SETUP)
	@if $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then \
		timeout --signal=TERM 480 $(BIN)/python train.py configs/cifar10/s4nd_headline.yaml data.root=$(DATA) out=out/gpu-train; \
	else echo 'There is no GPU here: nothing was trained.'; fi

# timm's test_models.py, fetched in the installed version; without K all models of ours (10 minutes on one core).
timm-suite: setup
	OMP_NUM_THREADS=1 $(BIN)/python tests/timm_suite.py '$(K)'

# One script for each library; CLIENTS='timm=FOLDER only=peft' passes words on.
clients: setup
	OMP_NUM_THREADS=1 $(BIN)/python examples/clients/run.py $(CLIENTS)

# The site in out/site. Nothing is fetched; a dead link, an unknown name or an out-of-date table is an error.
docs: setup
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build dist .pytest_cache .ruff_cache $(OUT)
