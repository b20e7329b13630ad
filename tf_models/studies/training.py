"""One run: train a model with an optimizer, and measure both."""

import contextlib
import dataclasses
import math
import statistics
import time

import keras

from et_optimizer import memory_report
from tf_models.studies import device, optimizers, tasks
from tf_models.studies.learning_rates import schedule

# Of the last, weights and gradients are stored in two bytes too.
DTYPE_POLICIES = ("float32", "mixed_bfloat16", "mixed_float16", "bfloat16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """Everything that decides what a run computes.

    Attributes:
        task: A task of `tf_models.studies.tasks`.
        optimizer: The text of an optimizer, see `tf_models.studies.optimizers`.
        learning_rate: The peak of its schedule.
        schedule: One of `learning_rates.SCHEDULES`.
        warmup_steps: Steps until the peak; `None` for a tenth of all.
        steps: Training steps.
        evaluations: How often it is validated, at equal distances, the last time at
            the end. Checkpoints are written then.
        seed: Selects the initial weights and the order of the batches.
        dtype_policy: One of `DTYPE_POLICIES`, of all of the model's layers.
        jit_compile: Whether XLA compiles the training step.
    """

    task: tasks.Language | tasks.Images | tasks.Convex
    optimizer: str
    learning_rate: float
    schedule: str = "cosine"
    warmup_steps: int | None = None
    steps: int = 1200
    evaluations: int = 1
    seed: int = 0
    dtype_policy: str = "float32"
    jit_compile: bool = True

    def identity(self):
        """The run as plain values, for JSON: equal for equal runs and no others."""
        values = dataclasses.asdict(self)
        values["task"] = {"kind": tasks.kind(self.task)} | values["task"]
        return values | {"backend": keras.backend.backend()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunResult:
    """What one run measured.

    Attributes:
        status: `"finished"`, or `"diverged"` where the loss stopped being a number.
        steps: Training steps made.
        data: What it was trained on.
        measure: What is measured: `"perplexity"`, `"error"` or `"excess loss"`.
            Less is better.
        unit: What the measure counts.
        validation: The measure at the end, on the validation split; NaN where the run
            diverged.
        test: The same on the test split.
        curve: Pairs of a step and the validation measure then.
        model_numbers: Numbers in the model's trained variables.
        model_bytes: The bytes they take.
        numbers_held: Numbers the optimizer holds, without step count and rate.
        bytes_held: The bytes they take, each in its own dtype.
        adam_bytes: The bytes Adam would hold for this model.
        times_less_than_adam: Adam's numbers held over this optimizer's; infinite
            for one that holds none.
        ms_per_step: Median time of a training step in milliseconds, without the
            first step, which compiles; NaN where there was no second.
        examples_per_second: Tokens or images trained on in a second, at that time.
        peak_device_bytes: The most memory that training steps took of the first GPU,
            or of the CPU where there is none: weights, slots, gradients, activations,
            and on a CPU the batches that wait. Without the first step, for which
            kernels are tried out, and without evaluation; but under JAX, which cannot
            count anew, with both. `None` where there was no second step or the
            framework does not count it, see `device.PeakMemory`.
    """

    status: str
    steps: int
    data: str
    measure: str
    unit: str
    validation: float
    test: float
    curve: tuple[tuple[int, float], ...]
    model_numbers: int
    model_bytes: int
    numbers_held: int
    bytes_held: int
    adam_bytes: int
    times_less_than_adam: float
    ms_per_step: float
    examples_per_second: float
    peak_device_bytes: int | None = None

    @property
    def diverged(self):
        """Whether the loss stopped being a number."""
        return self.status == "diverged"

    @property
    def percent_of_adam(self):
        """The bytes held, in per cent of Adam's."""
        return 100.0 * self.bytes_held / self.adam_bytes


class StepClock(keras.callbacks.Callback):
    """Times each training step and says when one is done.

    Args:
        on_step: Called without arguments after each training step.
    """

    def __init__(self, on_step):
        super().__init__()
        self.seconds = []
        self._on_step = on_step

    def on_train_batch_begin(self, batch, logs=None):
        self._start = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self.seconds.append(time.perf_counter() - self._start)
        self._on_step()

    @property
    def ms_per_step(self):
        """Median over all steps but the first; NaN where there is no other."""
        after_compilation = self.seconds[1:]
        if not after_compilation:
            return math.nan
        return 1e3 * statistics.median(after_compilation)


class StepMemory(keras.callbacks.Callback):
    """Looks for the most memory that training steps take of the device.

    Attributes:
        bytes: It, beyond what was held when this was made, over all steps but the
            first (under JAX, which cannot count anew, over all there was since);
            `None` where there was no other step, or nothing counts it.
    """

    def __init__(self):
        super().__init__()
        self.bytes = None
        self._memory = device.PeakMemory()
        self._is_first = True

    def on_train_batch_begin(self, batch, logs=None):
        self._memory.forget()

    def on_train_batch_end(self, batch, logs=None):
        taken = None if self._is_first else self._memory.bytes()
        self._is_first = False
        if taken is not None:
            self.bytes = max(taken, self.bytes or 0)


def train(
    run,
    task,
    *,
    on_step=lambda: None,
    on_restore=lambda step: None,
    checkpoint=None,
    callbacks=(),
):
    """Trains a new model from the run's weights on the run's batches.

    Args:
        run: The `Run`.
        task: Its task, loaded.
        on_step: Called without arguments after each training step.
        on_restore: Called with the step that the run goes on from.
        checkpoint: A `Checkpoint` to go on from and to write; `None` for neither.
        callbacks: Keras callbacks that look on.

    Returns:
        A `RunResult`. A run whose loss is no longer a finite number stops there and
        is `"diverged"`.
    """
    keras.backend.clear_session()
    keras.utils.set_random_seed(run.seed)
    step_memory = StepMemory()
    with _dtype_policy(run.dtype_policy):
        model = _compiled_model(run, task)
        clock = StepClock(on_step)
        curve = checkpoint.restore(model, run) if checkpoint else []
        on_restore(curve[-1][0] if curve else 0)
        _fit(model, run, task, curve, checkpoint, clock, [step_memory, *callbacks])
        diverged = not math.isfinite(curve[-1][1])
        test = math.nan
        if not diverged:
            logs = model.evaluate(task.test, verbose=0, return_dict=True)
            test = task.score(logs)
    memory = memory_report(model.optimizer)
    # Beside Keras's variables, as those of torch_optimizers.py do.
    held_elsewhere = getattr(model.optimizer, "held_elsewhere", lambda: (0, 0))
    numbers, held = held_elsewhere()
    numbers, held = memory.slots + numbers, memory.bytes + held
    steps_per_second = 1e3 / clock.ms_per_step
    return RunResult(
        status="diverged" if diverged else "finished",
        steps=curve[-1][0],
        data=task.data,
        measure=task.measure,
        unit=task.unit,
        validation=math.nan if diverged else curve[-1][1],
        test=test,
        curve=tuple(curve),
        model_numbers=memory.model_numbers,
        model_bytes=memory.model_bytes,
        numbers_held=numbers,
        bytes_held=held,
        adam_bytes=memory.adam_bytes,
        times_less_than_adam=memory.adam_slots / numbers if numbers else math.inf,
        ms_per_step=clock.ms_per_step,
        examples_per_second=task.examples_per_step * steps_per_second,
        peak_device_bytes=step_memory.bytes,
    )


def segments(run, first_step=0):
    """Cuts the steps of a run where it is evaluated.

    Args:
        run: The `Run`.
        first_step: An end of a segment, to leave out all up to it.

    Returns:
        A list of pairs: the first step of a segment, and the first that is not in it.
    """
    count = min(run.evaluations, run.steps)
    ends = [run.steps * number // count for number in range(count + 1)]
    return [pair for pair in zip(ends, ends[1:]) if pair[0] >= first_step]


def _compiled_model(run, task):
    model = task.make_model()
    rate = schedule(run.schedule, run.learning_rate, run.steps, run.warmup_steps)
    model.compile(
        optimizer=optimizers.make(run.optimizer, rate),
        loss=tasks.loss_of_logits(),
        metrics=list(task.metrics),
        jit_compile=run.jit_compile and keras.backend.backend() != "torch",
    )
    model.optimizer.build(model.trainable_variables)
    return model


def _fit(model, run, task, curve, checkpoint, clock, callbacks):
    """Trains to the end, or to where it diverges, and makes the curve longer."""
    first_step = curve[-1][0] if curve else 0
    for first, last in segments(run, first_step):
        if curve and not math.isfinite(curve[-1][1]):
            break
        before = len(clock.seconds)
        history = model.fit(
            task.training_batches(last - first, run.seed, first_step=first),
            validation_data=task.validation,
            initial_epoch=len(curve),
            epochs=len(curve) + 1,
            callbacks=[clock, keras.callbacks.TerminateOnNaN(), *callbacks],
            shuffle=False,  # The batches are shuffled.
            verbose=0,
        )
        logs = {
            name.removeprefix("val_"): values[-1]
            for name, values in history.history.items()
            if name.startswith("val_")
        }
        # Where `TerminateOnNaN` stopped it the weights are past use.
        value = math.nan if model.stop_training else task.score(logs)
        curve.append((first + len(clock.seconds) - before, value))
        if checkpoint:
            checkpoint.save(model, run, curve)


@contextlib.contextmanager
def _dtype_policy(name):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
