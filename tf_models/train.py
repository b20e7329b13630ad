"""Trains one model with one optimizer, and prints what it measured as a line of JSON.

    python -m tf_models.train --optimizer=ExtremeTensoring --level=2
    python -m tf_models.train --momentum_rank=16 --momentum_dtype=int8
    python -m tf_models.train --beta_1=0 --level="{'embeddings|logits': 1, '.*': 2}"
    python -m tf_models.train --optimizer='Adam(beta_2=0.99)' --text=folder \\
        --text_dir=~/notes --model=small --checkpoint_dir=out --evaluations=20
    python -m tf_models.train --task=images --images=digits --image_size=32 \\
        --model=resnet18 --width=16 --optimizer=SM3 --schedule=warmup

With --checkpoint_dir a run that was stopped, by Ctrl-C, a crash or a kill, goes on
where its last checkpoint was when the same command is given again, and ends with the
weights of one that was never stopped. A checkpoint is written at every evaluation.

Progress goes to standard error, so that standard output is the line alone.
"""

import ast
import itertools
import json
import pathlib
import sys

import keras
from absl import app, flags
from rich.console import Console

from tf_models.console import flag_rules, program
from tf_models.console.interrupt import DeferredInterrupt
from tf_models.data import IMAGES, TEXTS
from tf_models.models.transformer import SIZES
from tf_models.studies import optimizers, tasks
from tf_models.studies.checkpoints import Checkpoint, CheckpointError
from tf_models.studies.learning_rates import SCHEDULES
from tf_models.studies.study import result_to_json
from tf_models.studies.training import DTYPE_POLICIES, Run, train

REFUSED = 1
# Arguments of optimizers that have a flag of their own: numbers,
OPTIMIZER_FLAGS = ("beta_1", "beta_2", "momentum", "weight_decay", "clipnorm")
# and Python's literals, of which a word may be written without its quotes.
LITERAL_FLAGS = {
    "level": "1, 2, … or inf; or a dict of levels by regular expressions on paths, as "
    "in \"{'embeddings|logits': 1, '.*': 2}\"",
    "combination": "rank_one or geometric",
    "update_bound": "the largest entry of an update in learning rates, or None",
    "momentum_rank": "the directions of the momentum: auto, a number, None for a full "
    "momentum, or a dict of these by regular expressions on paths",
    "refresh_every": "steps from one choice of these directions to the next",
    "momentum_dtype": "float32, bfloat16 or int8",
    "rate_scale": "what rates are multiplied by: auto, a number, None for 1, or a dict "
    "of these by regular expressions on paths",
}
# For each kind of task its models, and the flags that go with it.
IMAGE_MODELS = ("resnet18", "mlp")
MODELS = {"language": tuple(SIZES), "images": IMAGE_MODELS, "convex": ()}
TASK_FLAGS = {
    "language": (
        "model",
        "batch_size",
        "text",
        "text_dir",
        "subwords",
        "sequence_length",
    ),
    "images": (
        "model",
        "batch_size",
        "images",
        "image_dir",
        "image_size",
        "width",
        "augment",
    ),
    "convex": (),
}

FLAGS = flags.FLAGS


def define_flags(values=FLAGS):
    """Defines the program's flags.

    They are not defined on import: other programs have flags of the same names.

    Args:
        values: An `absl.flags.FlagValues`. Defaults to the program's.
    """
    _define_task(values)
    _define_optimizer(values)
    _define_run(values)
    flag_rules.data_flags(values)
    flags.adopt_module_key_flags(flag_rules, values)  # For --help.


def _define_task(values):
    language, images = tasks.Language(), tasks.Images()
    for name, default, choices, text in (
        ("task", "language", list(tasks.TASKS), "What is trained."),
        ("text", language.text, list(TEXTS), "Text of the language."),
        ("images", images.images, list(IMAGES), "Which images."),
        (
            "model",
            None,
            [*SIZES, *IMAGE_MODELS],
            "The Transformer's size, or the image model. By default tiny or resnet18.",
        ),
    ):
        flags.DEFINE_enum(name, default, choices, text, flag_values=values)
    for name, default, low, high, text in (
        ("subwords", None, 257, 2**20, "Size of a subword vocabulary; else bytes"),
        (
            "sequence_length",
            language.sequence_length,
            1,
            flag_rules.LONGEST_SEQUENCE,
            "Tokens a window predicts",
        ),
        (
            "batch_size",
            None,
            1,
            None,
            "Windows (by default 16) or images (128) a training batch",
        ),
        ("image_size", None, 8, 1024, "Height and width images are scaled to"),
        ("width", images.width, 1, 4096, "Channels of the ResNet, units of the MLP"),
    ):
        flags.DEFINE_integer(name, default, f"{text}.", flag_values=values)
        flag_rules.whole(name, low, high, values)
    flags.DEFINE_bool(
        "augment", True, "Shift and mirror training images.", flag_values=values
    )


def _define_optimizer(values):
    flags.DEFINE_string(
        "optimizer",
        "ExtremeTensoring",
        "One of "
        + ", ".join(optimizers.names())
        + "; with arguments, as in 'ExtremeTensoring(level=2, beta_1=0.0)'; or a Keras "
        "configuration in JSON.",
        flag_values=values,
    )
    flag_rules.optimizer("optimizer", values)
    for name, text in LITERAL_FLAGS.items():
        flags.DEFINE_string(
            name, None, f"The optimizer's {name}: {text}.", flag_values=values
        )
    for name in OPTIMIZER_FLAGS:
        flags.DEFINE_float(name, None, f"The optimizer's {name}.", flag_values=values)
    flags.DEFINE_float(
        "learning_rate",
        None,
        "Peak learning rate, above 0. By default the optimizer's own.",
        flag_values=values,
    )
    flag_rules.positive("learning_rate", values)
    flags.DEFINE_enum(
        "schedule",
        "cosine",
        list(SCHEDULES),
        "The course of the learning rate: "
        + "; ".join(
            f"{name}: {course.__doc__.rstrip('.')}"
            for name, course in SCHEDULES.items()
        )
        + ".",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "warmup_steps",
        None,
        "Steps until the peak. By default a tenth of all.",
        flag_values=values,
    )
    flag_rules.whole("warmup_steps", 1, values=values)


def _define_run(values):
    for name, default, low, high, text in (
        ("steps", 1200, 1, None, "Training steps, at least 1"),
        ("evaluations", 4, 1, None, "How often it is validated and checkpointed"),
        ("seed", 0, 0, flag_rules.LARGEST_SEED, "Of weights and batches"),
    ):
        flags.DEFINE_integer(name, default, f"{text}.", flag_values=values)
        flag_rules.whole(name, low, high, values)
    flags.DEFINE_enum(
        "dtype_policy",
        "float32",
        list(DTYPE_POLICIES),
        "Keras's policy: in which precision to compute, and to store weights.",
        flag_values=values,
    )
    flag_rules.jit(values)
    for name, text in (
        ("checkpoint_dir", "Directory of the checkpoint to go on from and to write."),
        ("tensorboard_dir", "Directory for TensorBoard's logs."),
    ):
        flags.DEFINE_string(name, None, text, flag_values=values)
        flag_rules.directory(name, values)
    flags.DEFINE_string(
        "results",
        None,
        "File to append the line of JSON to, beside printing it.",
        flag_values=values,
    )
    flag_rules.file("results", values)


def main(argv):
    """Makes the run the flags describe.

    Args:
        argv: The command line without its flags: the program's name alone.

    Returns:
        The exit status: 0, or 130 where Ctrl-C ended it early.

    Raises:
        app.UsageError: the command line names something that is no flag, or flags
            that do not go together.
    """
    program.begin(argv, "train")
    try:
        run = chosen_run(FLAGS)
    except ValueError as error:
        raise app.UsageError(str(error)) from None
    return make(run, FLAGS, Console(stderr=True))


def chosen_run(values):
    """The run that flags describe.

    Args:
        values: The `absl.flags.FlagValues`.

    Returns:
        A `Run`.

    Raises:
        ValueError: flags that do not go together, or are out of an optimizer's range.
    """
    text = _optimizer_text(values)
    rate = values.learning_rate
    if rate is None:
        rate = optimizers.default_learning_rate(values.optimizer)
    optimizers.make(text, rate)  # Refuses what is out of range.
    if values.warmup_steps is not None and values.schedule == "constant":
        raise ValueError(
            "--warmup_steps does not go with --schedule=constant, which has none; "
            f"received {values.warmup_steps}. Leave it out, or use --schedule=warmup."
        )
    task = _task(values)
    flag_rules.check_data_flags([task], values)
    return Run(
        task=task,
        optimizer=text,
        learning_rate=rate,
        schedule=values.schedule,
        warmup_steps=values.warmup_steps,
        steps=values.steps,
        evaluations=values.evaluations,
        seed=values.seed,
        dtype_policy=values.dtype_policy,
        jit_compile=values.jit,
    )


def _optimizer_text(values):
    numbers = {name: values[name].value for name in OPTIMIZER_FLAGS}
    texts = {name: values[name].value for name in LITERAL_FLAGS}
    given = {name: value for name, value in numbers.items() if value is not None}
    # The text None is a value like any other: it turns a bound off.
    given |= {name: _literal(t) for name, t in texts.items() if t is not None}
    return optimizers.with_arguments(values.optimizer, given)


def _literal(text):
    """What a text is in Python; where it is nothing there, such as inf, itself."""
    try:
        return ast.literal_eval(text.strip())
    except (SyntaxError, TypeError, ValueError):
        return text


def _task(values):
    _check_task_flags(values)
    _check_model(values)
    if values.task == "convex":
        return tasks.Convex(data_seed=values.seed)
    own = {"text_dir": values.text_dir} if values.task == "language" else {}
    if values.task == "images":
        own = {"image_dir": values.image_dir}
    if values.model is not None:
        own["model"] = values.model
    if values.batch_size is not None:
        own["batch_size"] = values.batch_size
    if values.task == "language":
        task = tasks.Language(
            text=values.text,
            subwords=values.subwords,
            sequence_length=values.sequence_length,
            **own,
        )
    else:
        task = tasks.Images(
            images=values.images,
            size=values.image_size,
            width=values.width,
            augment=values.augment,
            **own,
        )
    flag_rules.check_folders(task)
    return task


def _check_task_flags(values):
    for name in itertools.chain.from_iterable(TASK_FLAGS.values()):
        if values[name].present and name not in TASK_FLAGS[values.task]:
            raise ValueError(
                f"--{name} does not go with --task={values.task}; received "
                f"{values[name].value!r}. Leave it out."
            )


def _check_model(values):
    choices = MODELS[values.task]
    if values.model is not None and values.model not in choices:
        raise ValueError(
            f"--model must be one of {', '.join(choices)} for --task={values.task}; "
            f"received {values.model!r}."
        )


def make(run, values, console):
    """Makes a run, and prints and keeps its result.

    Args:
        run: The `Run`.
        values: The `absl.flags.FlagValues`, for where things are and go.
        console: A `rich.console.Console` for progress and messages.

    Returns:
        The exit status: 0, 1 where the checkpoint is not this run's, or 130 where
        Ctrl-C ended it early.
    """
    task = program.load(run.task, values.data_dir, values.on_bad_file, console)
    console.print(f"Data: {task.data}. Optimizer: {run.optimizer}.")
    checkpoint = None
    if values.checkpoint_dir:
        checkpoint = Checkpoint(values.checkpoint_dir, task.data)
    callbacks = []
    if values.tensorboard_dir:
        directory = pathlib.Path(values.tensorboard_dir).expanduser()
        callbacks.append(keras.callbacks.TensorBoard(directory))
    try:
        with DeferredInterrupt() as interrupt, program.progress_bar(console) as bar:
            shown = bar.add_task("training", total=run.steps)

            def on_step():
                bar.advance(shown)
                interrupt.check()

            result = train(
                run,
                task,
                on_step=on_step,
                on_restore=lambda step: bar.update(shown, completed=step),
                checkpoint=checkpoint,
                callbacks=callbacks,
            )
    except CheckpointError as error:
        console.print(str(error))
        return REFUSED
    except KeyboardInterrupt:
        kept = "its last checkpoint is kept" if checkpoint else "it is lost"
        console.print(f"Interrupted before the run was finished; {kept}.")
        return program.INTERRUPTED
    line = json.dumps({"run": run.identity(), "result": result_to_json(result)})
    print(line)
    if values.results:
        path = pathlib.Path(values.results).expanduser()
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    return 0


if __name__ == "__main__":
    define_flags()
    sys.exit(app.run(main))
