# Two promises: `make demo` and `make test`, on a machine with Python 3.10+ and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DONE := $(VENV)/.installed

.PHONY: demo test test-torch lint format clean

demo: $(DONE)
	$(BIN)/python -m tf_models.compare

# Under JAX what does not need TensorFlow's own features, then all under TensorFlow;
# two tests at a time.
ON_ANY_BACKEND := $(addprefix tests/test_,$(addsuffix .py,adafactor bad_input \
	callbacks extreme_tensoring_exactness extreme_tensoring_lemmas \
	frequent_directions schedules shampoo sm3 subset_norm))
test: lint
	KERAS_BACKEND=jax $(BIN)/python -m pytest -n 2 $(ON_ANY_BACKEND)
	$(BIN)/python -m pytest -n 2 --cov=et_optimizer \
		--cov-report=term-missing:skip-covered --cov-fail-under=95

# The same under PyTorch, a large download that `make test` does without.
test-torch: $(DONE)
	$(BIN)/python -m pip install --quiet --editable '.[torch]'
	KERAS_BACKEND=torch $(BIN)/python -m pytest -n 2 $(ON_ANY_BACKEND) \
		tests/test_keras_features.py

lint: $(DONE)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(DONE)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The environment, made anew whenever the dependencies change.
$(DONE): setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: set PYTHON=... to one.")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[tensorflow,jax,models,test]'
	touch $(DONE)

clean:
	rm -rf $(VENV) build *.egg-info
