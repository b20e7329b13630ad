"""KerasTuner searches over levels and learning rates."""

import keras
import pytest
from sklearn.datasets import load_digits

import et_optimizer

keras_tuner = pytest.importorskip("keras_tuner")

# KerasTuner needs choices of one type: "inf" makes the levels strings.
LEVELS, LEARNING_RATES = ["1", "2", "inf"], [1e-4, 1e-2]


def digits():
    """Images of digits, for training and validation."""
    x, y = load_digits(return_X_y=True)
    x, y = (x / 16).astype("float32"), y.astype("int32")
    return (x[:600], y[:600]), (x[600:800], y[600:800])


def classifier(hp):
    level = hp.Choice("level", LEVELS)
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(16, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    model.compile(
        et_optimizer.ExtremeTensoring(
            hp.Choice("learning_rate", LEARNING_RATES),
            level=level if level == "inf" else int(level),
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    return model


def optimizer_settings(model):
    optimizer = model.optimizer
    return str(optimizer.level), pytest.approx(float(optimizer.learning_rate))


def trial_settings(hp):
    return hp["level"], hp["learning_rate"]


@pytest.mark.one_backend
def test_a_search_over_levels_and_learning_rates_finds_the_best(tmp_path):
    built = []

    def build(hp):
        model = classifier(hp)
        built.append((trial_settings(hp), optimizer_settings(model)))
        return model

    (x, y), validation = digits()
    tuner = keras_tuner.GridSearch(
        build, objective="val_loss", directory=tmp_path, project_name="levels"
    )
    tuner.search(x, y, epochs=2, validation_data=validation, verbose=0)

    trials = tuner.oracle.get_best_trials(num_trials=100)
    grid = {(level, rate) for level in LEVELS for rate in LEARNING_RATES}
    tried = [trial_settings(trial.hyperparameters.values) for trial in trials]
    assert set(tried) == grid and len(tried) == len(grid)
    assert {asked for asked, _ in built} == grid
    assert all(asked == made for asked, made in built)
    scores = [trial.score for trial in trials]
    assert scores == sorted(scores) and len(set(scores)) == len(scores)
    # The smaller learning rate is far too small for two epochs.
    assert [rate for _, rate in tried] == 3 * [1e-2] + 3 * [1e-4]

    # The best model with its weights, and the same built again.
    best = tuner.get_best_models()[0]
    assert optimizer_settings(best) == tried[0]
    assert best.evaluate(*validation, verbose=0) == pytest.approx(scores[0], rel=1e-4)
    again = tuner.hypermodel.build(tuner.get_best_hyperparameters()[0])
    assert optimizer_settings(again) == tried[0]
