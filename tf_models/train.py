"""Trains one model with one optimizer, and prints the result as a line of JSON.

    python -m tf_models.train --optimizer=ExtremeTensoring --level=2
    python -m tf_models.train --momentum_rank=16 --momentum_dtype=int8
    python -m tf_models.train --beta_1=0 --level="{'embeddings|logits': 1, '.*': 2}"
    python -m tf_models.train --optimizer='Adam(beta_2=0.99)' --text=folder \\
        --text_dir=~/notes --model=small --checkpoint_dir=out --evaluations=20
    python -m tf_models.train --task=images --images=digits --image_size=32 \\
        --model=resnet18 --width=16 --optimizer=SM3 --schedule=warmup

With --checkpoint_dir the same command resumes a run that was stopped by Ctrl-C, a crash
or a kill at its last checkpoint, and ends with the weights of an undisturbed run. Every
evaluation writes a checkpoint.

Progress goes to standard error, so that standard output has only the line of JSON.
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
# Arguments of optimizers with their own flags: numbers,
OPTIMIZER_FLAGS = ("beta_1", "beta_2", "momentum", "weight_decay", "clipnorm")
# and Python literals, where words need no quotes.
LITERAL_FLAGS = {
    "level": "1, 2, … or inf; or a dict of levels by regular expressions on paths, as "
    "in \"{'embeddings|logits': 1, '.*': 2}\"",
    "combination": "rank_one or geometric",
    "update_bound": "the largest entry of an update, in units of the learning rate, "
    "or None",
    "momentum_rank": "the rank of the momentum: auto, a number, None for full "
    "momentum, or a dict of these by regular expressions on paths",
    "refresh_every": "steps between updates of the subspace of the momentum",
    "momentum_dtype": "float32, bfloat16 or int8",
    "rate_scale": "factor of the learning rate: auto, a number, None for 1, or a dict "
    "of these by regular expressions on paths",
}
# The models of each kind of task, and its flags.
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

    Not on import, because other programs have flags with the same names.

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
        ("task", "language", list(tasks.TASKS), "The task."),
        ("text", language.text, list(TEXTS), "The text of --task=language."),
        ("images", images.images, list(IMAGES), "The images of --task=images."),
        (
            "model",
            None,
            [*SIZES, *IMAGE_MODELS],
            "Size of the Transformer, or the image model. By default tiny or resnet18.",
        ),
    ):
        flags.DEFINE_enum(name, default, choices, text, flag_values=values)
    for name, default, low, high, text in (
        (
            "subwords",
            None,
            257,
            2**20,
            "Size of the subword vocabulary. By default tokens are bytes",
        ),
        (
            "sequence_length",
            language.sequence_length,
            1,
            flag_rules.LONGEST_SEQUENCE,
            "Tokens that a window predicts",
        ),
        (
            "batch_size",
            None,
            1,
            None,
            "Windows (by default 16) or images (128) per training batch",
        ),
        ("image_size", None, 8, 1024, "Height and width to which images are scaled"),
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
        + "; or one with arguments, as in 'ExtremeTensoring(level=2, beta_1=0.0)'.",
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
        "Peak learning rate, above 0. By default that of the optimizer.",
        flag_values=values,
    )
    flag_rules.positive("learning_rate", values)
    flags.DEFINE_enum(
        "schedule",
        "cosine",
        list(SCHEDULES),
        "The learning rate schedule: "
        + "; ".join(
            f"{name}: {schedule.__doc__.rstrip('.')}"
            for name, schedule in SCHEDULES.items()
        )
        + ".",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "warmup_steps",
        None,
        "Steps until the peak. By default a tenth of all steps.",
        flag_values=values,
    )
    flag_rules.whole("warmup_steps", 1, values=values)


def _define_run(values):
    for name, default, low, high, text in (
        ("steps", 1200, 1, None, "Training steps, at least 1"),
        ("evaluations", 4, 1, None, "Number of evaluations, each with a checkpoint"),
        ("seed", 0, 0, flag_rules.LARGEST_SEED, "Seed of weights and batches"),
    ):
        flags.DEFINE_integer(name, default, f"{text}.", flag_values=values)
        flag_rules.whole(name, low, high, values)
    flags.DEFINE_enum(
        "dtype_policy",
        "float32",
        list(DTYPE_POLICIES),
        "Keras's dtype policy.",
        flag_values=values,
    )
    flag_rules.jit(values)
    for name, text in (
        ("checkpoint_dir", "Directory of the checkpoint to resume from and to write."),
        ("tensorboard_dir", "Directory of the logs for TensorBoard."),
    ):
        flags.DEFINE_string(name, None, text, flag_values=values)
        flag_rules.directory(name, values)
    flags.DEFINE_string(
        "results",
        None,
        "File to which the line of JSON is appended.",
        flag_values=values,
    )
    flag_rules.file("results", values)


def main(argv):
    """Trains the run that the flags describe.

    Args:
        argv: The command line without its flags: only the program's name.

    Returns:
        The exit status: 0, 1 if the checkpoint belongs to another run, or 130 after
        Ctrl-C.

    Raises:
        app.UsageError: an argument is not a flag, or flags are incompatible.
    """
    program.begin(argv, "train")
    try:
        run = chosen_run(FLAGS)
    except ValueError as error:
        raise app.UsageError(str(error)) from None
    return make(run, FLAGS, Console(stderr=True))


def chosen_run(values):
    """Makes the `Run` that flags describe.

    Args:
        values: The `absl.flags.FlagValues`.

    Returns:
        A `Run`.

    Raises:
        ValueError: flags are incompatible, or out of an optimizer's range.
    """
    text = _optimizer_text(values)
    rate = values.learning_rate
    if rate is None:
        rate = optimizers.default_learning_rate(values.optimizer)
    optimizers.make(text, rate)  # Refuses arguments that are out of range.
    if values.warmup_steps is not None and values.schedule == "constant":
        raise ValueError(
            "--warmup_steps cannot be used with --schedule=constant; "
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
    # The text "None" is a value too: it turns a bound off.
    given |= {name: _literal(t) for name, t in texts.items() if t is not None}
    return optimizers.with_arguments(values.optimizer, given)


def _literal(text):
    """The value of a Python literal; other texts, such as inf, stay as they are."""
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
                f"--{name} cannot be used with --task={values.task}; received "
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
    """Trains a run, and prints and saves its result.

    Args:
        run: The `Run`.
        values: The `absl.flags.FlagValues`, for paths of inputs and outputs.
        console: A `rich.console.Console` for progress and messages.

    Returns:
        The exit status: 0, 1 if the checkpoint belongs to another run, or 130 after
        Ctrl-C.
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
