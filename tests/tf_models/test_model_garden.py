"""The optimizers in the TensorFlow Model Garden: its factory and its trainer."""

import copy
import importlib
import math
import os
import pathlib
import pickle
import runpy
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from sklearn.datasets import load_digits

pytest.importorskip("official", reason="needs the TensorFlow Model Garden")

import yaml
from official.core import exp_factory, task_factory
from official.modeling import hyperparams, optimization
from official.modeling.optimization import optimizer_factory
from official.projects.detr import optimization as detr
from official.vision import registry_imports  # noqa: F401

from et_optimizer import tf_keras as optimizers
from et_optimizer.momenta.subspace import auto_rank
from et_optimizer.views.tensor_index import TensorIndex, matrix_shape
from tf_models import model_garden

model_garden.register()

ROOT = pathlib.Path(__file__).parents[2]
EXPERIMENT = ROOT / "tf_models" / "experiments" / "cifar10_resnet.yaml"
STEPS = 48  # An epoch of the digits in batches of 32.
RATES = {
    "learning_rate": {
        "type": "cosine",
        "cosine": {"initial_learning_rate": 0.5, "decay_steps": 110},
    },
    "warmup": {
        "type": "linear",
        "linear": {"warmup_steps": 10, "warmup_learning_rate": 0.1},
    },
}
# Every type, with arguments other than its defaults.
ARGUMENTS = {
    "extreme_tensoring": {
        "level": "inf",
        "beta_1": 0.8,
        "weight_decay": 0.01,
        "combination": "geometric",
        "update_bound": None,
        "momentum_rank": None,
        "momentum_dtype": "int8",
        "refresh_every": 7,
    },
    "muon": {
        "beta_1": 0.9,
        "momentum_dtype": "int3",
        "orthogonalize": False,
        "momentum_rank": None,
    },
    "sm3": {"variant": "I", "momentum": 0.9, "global_clipnorm": 1.0},
    "adafactor": {"relative_step": False, "epsilon_2": 0.01, "clipnorm": 2.0},
    "subset_norm": {
        "axis": 0,
        "statistic": "sum",
        "beta_2": None,
        "beta_1": 0.5,
        "momentum_of": "gradient",
        "momentum_rank": 1,
        "update_bound": 2.0,
    },
    "shampoo": {"block_size": 64, "graft": "sgd", "jit_compile": False},
    "sketchy_shampoo": {"rank": 7, "update_every": 3, "name": "sketchy"},
    "sketchy_adagrad": {"rank": 5, "use_ema": True, "ema_momentum": 0.5},
}


def configured(key, arguments):
    return {"optimizer": {"type": key, key: arguments}, **RATES}


def build(config, **kwargs):
    factory = optimization.OptimizerFactory(config)
    return factory.build_optimizer(factory.build_learning_rate(), **kwargs)


def from_file(folder, overrides, config=None):
    path = folder / "overrides.yaml"
    path.write_text(yaml.safe_dump(overrides, sort_keys=False))
    config = config or optimization.OptimizationConfig()
    return hyperparams.override_params_dict(config, str(path), is_strict=True)


def test_registering_twice_changes_nothing():
    tables = (
        optimizer_factory.LEGACY_OPTIMIZERS_CLS,
        optimizer_factory.NEW_OPTIMIZERS_CLS,
    )
    before = [
        table.keys() | set(optimization.OptimizerConfig.__dataclass_fields__)
        for table in tables
    ]
    config = optimization.OptimizerConfig(
        type="sm3", sm3=model_garden.SM3Config(momentum=0.5)
    )
    model_garden.register()
    assert before == [
        table.keys() | set(optimization.OptimizerConfig.__dataclass_fields__)
        for table in tables
    ]
    assert config == optimization.OptimizerConfig(
        {"type": "sm3", "sm3": {"momentum": 0.5}}
    )
    assert config != optimization.OptimizerConfig(type="sm3")


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("key", model_garden.REGISTERED)
def test_every_type_gets_its_arguments_and_the_learning_rate_of_the_garden(
    key, legacy, tmp_path
):
    asked = configured(key, ARGUMENTS[key])
    for config in [
        optimization.OptimizationConfig(asked),
        from_file(tmp_path, asked),
    ]:
        optimizer = build(config, use_legacy_optimizer=legacy)
        assert isinstance(optimizer, optimizers.PreconditionedOptimizer)
        assert type(optimizer).__name__.lower() == key.replace("_", "")
        got = optimizer.get_config()
        assert {name: got[name] for name in ARGUMENTS[key]} == ARGUMENTS[key]
        rates, variable = [], tf.Variable(tf.ones((2, 3)))
        for step in [0, 5, 10, 110]:
            optimizer.iterations.assign(step)
            optimizer.apply_gradients([(tf.ones((2, 3)), variable)])
            rates.append(float(optimizer.learning_rate))
        peak = 0.5 * (1 + np.cos(np.pi * 10 / 110)) / 2
        expected = [0.1, 0.1 + (peak - 0.1) / 2, peak, 0.0]
        np.testing.assert_allclose(rates, expected, atol=1e-6)


@pytest.mark.parametrize("key", model_garden.REGISTERED)
def test_an_omitted_argument_has_the_default_of_the_optimizer(key):
    optimizer, _ = model_garden.REGISTERED[key]
    config = build(optimization.OptimizationConfig(configured(key, {}))).get_config()
    expected = optimizer().get_config()
    assert config.pop("learning_rate") != expected.pop("learning_rate")
    assert config == expected


def test_adafactor_replaces_the_stub_of_the_garden():
    optimizer = build(optimization.OptimizationConfig(configured("adafactor", {})))
    matrix = tf.Variable(tf.ones((3, 4)))
    optimizer.apply_gradients([(tf.ones((3, 4)), matrix)])
    assert float(matrix[0, 0]) < 1
    vectors = [v for v in optimizer.variables if v.shape.rank == 1]
    assert sorted(int(v.shape[0]) for v in vectors) == [3, 4]


def test_the_command_line_overrides_an_argument():
    config = optimization.OptimizationConfig(configured("extreme_tensoring", {}))
    given = "optimizer.extreme_tensoring.level=3,optimizer.extreme_tensoring.beta_1=0.5"
    hyperparams.override_params_dict(config, given, is_strict=True)
    got = build(config).get_config()
    assert (got["level"], got["beta_1"]) == (3, 0.5)


def test_an_unknown_argument_is_an_error_of_the_garden(tmp_path):
    with pytest.raises(KeyError, match="levle.*does not exist.*ExtremeTensoringConfig"):
        from_file(tmp_path, configured("extreme_tensoring", {"levle": 2}))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"level": 0}, "level must be"),
        ({"level": ["2"]}, "level must be"),
        ({"level": {"kernel": 0}}, "level must be"),
        ({"level": {"(": 1}}, "level"),
        ({"momentum_rank": {"kernel": "all"}}, "momentum_rank must be"),
        ({"combination": "mean"}, "combination must be"),
        ({"update_bound": 0.0}, "update_bound must be"),
        ({"beta_2": 1.5}, "beta_2 must be"),
        ({"tensor_index": [4, 8]}, "tensor_index must be"),
        ({"tensor_index": {"(": [4]}}, "tensor_index"),
    ],
)
def test_a_wrong_value_is_an_error_of_the_optimizer(wrong, message, tmp_path):
    config = from_file(tmp_path, configured("extreme_tensoring", wrong))
    with pytest.raises(ValueError, match=message):
        build(config)


def test_a_tensor_index_keeps_the_order_of_its_expressions(tmp_path):
    # The first match wins, and the Garden itself would sort the expressions.
    given = {"table": [6, 8], ".*": [48]}
    asked = {"tensor_index": given, "beta_1": 0.0}
    config = from_file(tmp_path, configured("extreme_tensoring", asked))
    # An experiment saves its configuration and reads it again like this.
    hyperparams.save_params_dict_to_yaml(config, str(tmp_path / "params.yaml"))
    again = optimization.OptimizationConfig.from_yaml(str(tmp_path / "params.yaml"))
    for made in [config, again]:
        optimizer = build(made)
        assert list(optimizer.get_config()["tensor_index"].items()) == [
            ("table", [6, 8]),
            (".*", [48]),
        ]
        optimizer.build([tf.Variable(tf.ones((6, 8)), name="table")])
        assert [v.shape[0] for v in optimizer.variables if v.shape.rank] == [6, 8]


def test_a_later_tensor_index_replaces_the_earlier_one(tmp_path):
    def override(index):
        return configured("extreme_tensoring", {"tensor_index": index})

    config = from_file(tmp_path, override({"a": [2, 3], "b": [6]}))
    from_file(tmp_path, override({"b": [3, 2], "c": [6]}), config)
    index = build(config).get_config()["tensor_index"]
    assert index == {"b": [3, 2], "c": [6]}
    from_file(tmp_path, override({}), config)
    assert build(config).get_config()["tensor_index"] == {}
    from_file(tmp_path, override(None), config)
    assert build(config).get_config()["tensor_index"] is None


def test_the_axis_of_subset_norm_can_be_a_mapping(tmp_path):
    asked = configured("subset_norm", {"axis": {"table": 1, ".*": "auto"}})
    axis = build(from_file(tmp_path, asked)).get_config()["axis"]
    assert axis == {"table": 1, ".*": "auto"}


@pytest.mark.parametrize(
    ("argument", "given"),
    [
        # Sorting would change the order, and with it which expression wins.
        ("level", {"table": 1, ".*": "inf"}),
        ("momentum_rank", {"table": None, ".*": 1, "$": "auto"}),
        ("rate_scale", {"table": 4.0, ".*": "auto"}),
    ],
)
def test_an_argument_by_path_keeps_its_order_and_values(argument, given, tmp_path):
    config = from_file(tmp_path, configured("extreme_tensoring", {argument: given}))
    hyperparams.save_params_dict_to_yaml(config, str(tmp_path / "params.yaml"))
    again = optimization.OptimizationConfig.from_yaml(str(tmp_path / "params.yaml"))
    straight = optimization.OptimizationConfig(
        configured("extreme_tensoring", {argument: given})
    )
    for made in [config, again, straight]:
        optimizer = build(made)
        kept = optimizer.get_config()[argument]
        assert list(kept.items()) == list(given.items())
        optimizer.build(
            [
                tf.Variable(tf.ones((6, 8)), name="table"),
                tf.Variable(tf.ones((6, 8)), name="other"),
            ]
        )
        shapes = {v.name.split(":")[0]: tuple(v.shape) for v in optimizer.variables}
        of_table = {name: s for name, s in shapes.items() if name.startswith("table")}
        of_other = {name: s for name, s in shapes.items() if name.startswith("other")}
        if argument == "level":
            assert {(6,), (8,)} <= set(of_table.values())
            assert () in of_other.values() and (6,) not in of_other.values()
        elif argument == "rate_scale":
            assert [state.rate_scale for state in optimizer._states] == [4.0, 1.0]
        else:
            assert (6, 8) in of_table.values()
            assert (6, 8) not in of_other.values()
            assert {(6, 1), (1, 8)} <= set(of_other.values())
    # A number replaces the mapping, and a mapping the number.
    from_file(tmp_path, configured("extreme_tensoring", {argument: 2}), config)
    assert build(config).get_config()[argument] == 2
    from_file(tmp_path, configured("extreme_tensoring", {argument: given}), config)
    assert build(config).get_config()[argument] == given


def test_the_command_line_can_set_a_rank_to_none():
    config = optimization.OptimizationConfig(configured("extreme_tensoring", {}))
    own = "optimizer.extreme_tensoring"
    hyperparams.override_params_dict(
        config, f"{own}.momentum_rank=null,{own}.update_bound=null", is_strict=True
    )
    got = build(config).get_config()
    assert (got["momentum_rank"], got["update_bound"]) == (None, None)


@pytest.mark.parametrize(
    "copied",
    [
        copy.deepcopy,
        lambda config: pickle.loads(pickle.dumps(config)),
        lambda config: config.replace(ema=None),
        lambda config: optimization.OptimizationConfig(config.as_dict()),
    ],
    ids=["deepcopy", "pickle", "replace", "as_dict"],
)
def test_a_copy_of_a_configuration_is_equal_and_independent(copied):
    arguments = {
        "level": 3,
        "tensor_index": {"z": [2, 3], "a": [6]},
        "momentum_rank": {"z": None, "a": 4},
    }
    config = optimization.OptimizationConfig(configured("extreme_tensoring", arguments))
    twin = copied(config)
    assert twin == config and repr(twin) == repr(config)
    twin.override({"optimizer": {"extreme_tensoring": {"level": 1}}})
    assert config.optimizer.extreme_tensoring.level == 3
    twin.lock()
    with pytest.raises(ValueError, match="locked"):
        twin.optimizer = {}


def test_the_optimizer_types_of_a_project_remain():
    # Its class was derived before these types were registered.
    params = configured("detr_adamw", {"beta_1": 0.5})
    config = detr.OptimizationConfig(params)
    assert config.optimizer.get().beta_1 == 0.5
    config.override(configured("sm3", {"momentum": 0.5}))
    assert build(config).get_config()["momentum"] == 0.5


def test_the_moving_average_of_the_garden_wraps_these_optimizers():
    config = optimization.OptimizationConfig(
        {"ema": {"average_decay": 0.5}, **configured("sm3", {})}
    )
    optimizer = build(config)
    assert isinstance(optimizer, optimization.ExponentialMovingAverage)
    np.testing.assert_allclose(float(optimizer.learning_rate), 0.1)
    model = tf_keras.Sequential([tf_keras.layers.Dense(2, input_shape=(3,))])
    optimizer.shadow_copy(model)
    kernel, bias = model.trainable_variables
    seen = []
    for _ in range(2):
        optimizer.apply_gradients([(tf.ones((3, 2)), kernel), (tf.ones(2), bias)])
        seen.append(kernel.numpy())
    average = optimizer._average_weights[0].numpy()
    assert np.any(average != seen[0]) and np.any(average != seen[1])


def test_the_language_program_can_be_imported():
    # It needs TensorFlow Hub, which needs an old setuptools.
    importlib.import_module("official.nlp.train")


def test_without_the_garden_the_import_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "official.common", None)
    with pytest.raises(ImportError, match=r"pip install '\.\[models\]'"):
        runpy.run_path(model_garden.__file__)


# The experiment of the file in the repository.


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A file that shrinks the experiment: digits, without shuffling."""
    folder = tmp_path_factory.mktemp("digits")
    digits = load_digits()
    parts = {"train": slice(0, 1536), "test": slice(1536, 1792)}
    for part, rows in parts.items():
        write_examples(folder / part, digits.images[rows], digits.target[rows])

    def data(part):
        return {"tfds_name": "", "tfds_split": "", "input_path": str(folder / part)}

    resnet = {"model_id": 10, "depth_multiplier": 0.125}
    overrides = {
        "task": {
            "model": {"backbone": {"resnet": resnet}},
            "train_data": {
                **data("train"),
                "global_batch_size": 32,
                "shuffle_buffer_size": 1,
                "aug_rand_hflip": False,
            },
            "validation_data": {**data("test"), "global_batch_size": 32},
        },
        "trainer": {
            "train_steps": 2 * STEPS,
            "steps_per_loop": STEPS,
            "summary_interval": STEPS,
            "checkpoint_interval": STEPS,
            "validation_interval": STEPS,
            "validation_steps": 8,
            "optimizer_config": {
                "learning_rate": {"cosine": {"decay_steps": 2 * STEPS}},
                "warmup": {"linear": {"warmup_steps": 5}},
            },
        },
    }
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(overrides))
    return path


def write_examples(path, images, labels):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for image, label in zip(images, labels):
            pixels = np.uint8(np.round(image * 255 / 16))[:, :, None]
            png = tf.io.encode_png(pixels).numpy()
            feature = {
                "image/encoded": tf.train.Feature(
                    bytes_list=tf.train.BytesList(value=[png])
                ),
                "image/class/label": tf.train.Feature(
                    int64_list=tf.train.Int64List(value=[int(label)])
                ),
            }
            features = tf.train.Features(feature=feature)
            writer.write(tf.train.Example(features=features).SerializeToString())


def run(small, model_dir, mode):
    """Runs the program of the Garden on the small experiment."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tf_models.model_garden"),
            *("--experiment=image_classification", f"--mode={mode}"),
            *(f"--config_file={EXPERIMENT}", f"--config_file={small}"),
            f"--model_dir={model_dir}",
        ],
        cwd=ROOT,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def model_dir(small, tmp_path_factory):
    """The directory of a finished run."""
    model_dir = tmp_path_factory.mktemp("run")
    run(small, model_dir, "train_and_eval")
    return model_dir


def logged(folder, tag):
    """The values of a tag that a run logged for TensorBoard."""
    return [
        float(tf.make_ndarray(value.tensor))
        for file in sorted(folder.glob("events*"))
        for event in tf.compat.v1.train.summary_iterator(str(file))
        for value in event.summary.value
        if value.tag == tag
    ]


def saved(model_dir, step):
    """Everything in a checkpoint, by name."""
    reader = tf.train.load_checkpoint(str(model_dir / f"ckpt-{step}"))
    names = reader.get_variable_to_shape_map()
    return {name: reader.get_tensor(name) for name in names if "_GRAPH" not in name}


def test_the_program_trains_evaluates_and_saves(model_dir):
    first, last = logged(model_dir / "train", "training_loss")
    assert last < 0.8 * first
    assert logged(model_dir / "validation", "accuracy")[-1] > 0.3
    rates = logged(model_dir / "train", "learning_rate")
    # The learning rates of the last steps before each summary.
    passed = np.array([STEPS - 1, 2 * STEPS - 1]) / (2 * STEPS)
    expected = 0.002 * (1 + np.cos(np.pi * passed)) / 2
    np.testing.assert_allclose(rates, expected, atol=1e-8)
    kept = yaml.full_load((model_dir / "params.yaml").read_text())
    optimizer = kept["trainer"]["optimizer_config"]["optimizer"]
    arguments = optimizer["extreme_tensoring"]
    assert (arguments["level"], arguments["momentum_rank"]) == (1, "auto")


def test_a_resumed_experiment_ends_bit_for_bit_like_an_undisturbed_one(
    small, model_dir, tmp_path
):
    for file in model_dir.glob(f"ckpt-{STEPS}.*"):
        shutil.copy(file, tmp_path)
    tf.compat.v1.train.update_checkpoint_state(
        str(tmp_path), str(tmp_path / f"ckpt-{STEPS}")
    )
    run(small, tmp_path, "train")
    assert not (tmp_path / "ckpt-0.index").exists()
    undisturbed, resumed = saved(model_dir, 2 * STEPS), saved(tmp_path, 2 * STEPS)
    assert undisturbed.keys() == resumed.keys()
    assert undisturbed["optimizer/_iterations/.ATTRIBUTES/VARIABLE_VALUE"] == 2 * STEPS
    for name, value in undisturbed.items():
        if "save_counter" not in name:
            np.testing.assert_array_equal(resumed[name], value, err_msg=name)


def test_a_checkpoint_holds_only_the_state_of_extreme_tensoring(small, model_dir):
    params = exp_factory.get_exp_config("image_classification")
    for file in [EXPERIMENT, small]:
        hyperparams.override_params_dict(params, str(file), is_strict=True)
    model = task_factory.get_task(params.task).build_model()
    shapes = [tuple(v.shape) for v in model.trainable_variables]
    values = [
        value
        for name, value in saved(model_dir, 2 * STEPS).items()
        if name.startswith("optimizer/_variables/")
    ]
    slots = [value for value in values if value.dtype == np.float32]
    indices = [TensorIndex.from_shape(shape, 1) for shape in shapes]
    assert sum(value.size for value in slots) == sum(index.slots for index in indices)
    # Each variable also has a counter of skipped steps.
    counters = [value for value in values if value.dtype == np.int32]
    assert [value.shape for value in counters] == [()] * len(shapes)
    of_these = (np.float32, np.int32)
    momentum = [value for value in values if value.dtype not in of_these]
    assert {value.dtype.name for value in momentum} == {"bfloat16"}
    assert sum(value.size for value in momentum) == sum(map(momentum_of, shapes))


def momentum_of(shape):
    """The number of elements of a variable's default momentum."""
    matrix = matrix_shape(shape)
    size = math.prod(shape)
    if matrix is None:
        return size
    return min(size, auto_rank(*matrix) * sum(matrix))
