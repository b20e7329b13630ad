# Two promises: `make demo` and `make test`, on a machine with Python 3.10+ and make.
PYTHON ?= python3
VENV ?= .venv
# The release of PyTorch that the tests have passed with. PyPI's brings CUDA, gigabytes;
# one that is already in the environment stays there.
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
FOR_DEMO := $(VENV)/.for-demo
FOR_TESTS := $(VENV)/.for-tests

.PHONY: demo test test-quick test-tensorflow test-jax test-torch fuzz lint format docs \
	build notebooks clean

demo: $(FOR_DEMO)
	$(BIN)/python -m tf_models.compare

# The studies' programs under TensorFlow, and the optimizers under each of Keras's
# backends, where what is tested does not depend on it under one or two of them; two
# tests at a time. PyTorch's run begins the count of the lines that
# run, and TensorFlow's adds those of what only it has (tests/conftest.py).
test: AT_LEAST := --cov-fail-under=95
test: lint test-jax test-torch test-tensorflow

COUNTED := --cov=et_optimizer --cov-report=term-missing:skip-covered
# Tests that compile take a fifth to a third less where machine code is not optimized;
# those of the studies train, which takes longer then. What is exact to the last place is
# tested in the machine code that users run.
NOT_OPTIMIZED := XLA_FLAGS='--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
EXACT := batched rounding resume
test-tensorflow: $(FOR_TESTS)
	KERAS_BACKEND=tensorflow $(BIN)/python -m pytest -n 2 --dist worksteal \
		-m "not one_backend" $(EXACT:%=tests/test_%.py) tests/tf_models
	$(NOT_OPTIMIZED) KERAS_BACKEND=tensorflow $(BIN)/python -m pytest -n 2 --dist worksteal \
		-m "not one_backend" --ignore=tests/tf_models $(EXACT:%=--ignore=tests/test_%.py) \
		$(COUNTED) --cov-append $(AT_LEAST)

# What the optimizers compute is compared with the papers under PyTorch and TensorFlow;
# what JAX's compiled programs do, with TensorFlow's (tests/test_backends_agree.py). Both
# workers, and the processes that tests start, share what they have compiled.
COMPILED := JAX_COMPILATION_CACHE_DIR=$(abspath $(VENV))/compiled \
	JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 \
	JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES=-1
test-jax: $(FOR_TESTS)
	$(NOT_OPTIMIZED) $(COMPILED) \
		KERAS_BACKEND=jax $(BIN)/python -m pytest -n 2 --dist worksteal \
		-m "not one_backend and not two_backends" --ignore=tests/tf_models

test-torch: $(FOR_TESTS)
	OMP_NUM_THREADS=1 KERAS_BACKEND=torch $(BIN)/python -m pytest -n 2 --dist worksteal \
		$(COUNTED) --ignore=tests/tf_models

# Two minutes, for the loop of a developer: PyTorch, which compiles nothing, and no test
# that takes its time, starts processes, or is of a part that few changes touch.
NOT_QUICK := shampoo spikes resume fresh_process fuzz frequent_directions keras_hub \
	keras_tuner torch_optimizers docs types build
test-quick: $(FOR_TESTS)
	OMP_NUM_THREADS=1 KERAS_BACKEND=torch $(BIN)/python -m pytest -q -n 2 \
		--dist worksteal --ignore=tests/tf_models $(NOT_QUICK:%=--ignore=tests/test_%.py)

# A wheel and an sdist in dist/, of the working tree.
build: $(FOR_TESTS)
	$(BIN)/python -m build

# The random search of tests/fuzz.py at length, of which `make test` has some seeds.
FUZZ ?= 10000
fuzz: $(FOR_TESTS)
	KERAS_BACKEND=tensorflow $(BIN)/python -m tests.fuzz $(FUZZ)
	KERAS_BACKEND=jax $(BIN)/python -m tests.fuzz $(FUZZ)

lint: $(FOR_TESTS)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(FOR_TESTS)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The documentation as a site, in site/: open site/index.html.
docs: $(FOR_TESTS)
	$(BIN)/mkdocs build --strict

# Executes the notebooks of colab/ at smoke size, and keeps their outputs.
notebooks: $(FOR_TESTS)
	$(BIN)/python -m tests.notebooks

# The environment, made anew whenever the dependencies change. The tests want much more
# than the demo.
$(FOR_DEMO): setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: set PYTHON=... to one.")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[tensorflow,studies]'
	touch $(FOR_DEMO)

$(FOR_TESTS): $(FOR_DEMO)
	$(BIN)/python -m pip install --quiet $(TORCH) \
		--editable '.[tensorflow,jax,torch,studies,models,peers,docs,test]'
	touch $(FOR_TESTS)

clean:
	rm -rf $(VENV) build site *.egg-info
