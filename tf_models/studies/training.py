"""Trains a model with an optimizer and measures the result."""

import contextlib
import dataclasses
import math
import statistics
import time

import keras

from et_optimizer import memory_report
from tf_models.studies import device, optimizers, tasks
from tf_models.studies.learning_rates import schedule

# "bfloat16" also stores weights and gradients in 16 bits.
DTYPE_POLICIES = ("float32", "mixed_bfloat16", "mixed_float16", "bfloat16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """All settings that determine the result of a run.

    Attributes:
        task: A task of `tf_models.studies.tasks`.
        optimizer: The text of an optimizer, see `tf_models.studies.optimizers`.
        learning_rate: The peak of its schedule.
        schedule: One of `learning_rates.SCHEDULES`.
        warmup_steps: Steps until the peak; `None` for a tenth of all steps.
        steps: Training steps.
        evaluations: The number of evaluations, at equal intervals, the last one at the
            end. Each of them also writes a checkpoint.
        seed: Selects the initial weights and the order of the batches.
        dtype_policy: One of `DTYPE_POLICIES`, for all layers of the model.
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
        """The settings as JSON values, equal for equal runs only."""
        values = dataclasses.asdict(self)
        values["task"] = {"kind": tasks.kind(self.task)} | values["task"]
        return values | {"backend": keras.backend.backend()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunResult:
    """The result of one run. Journals and CSV files use these names.

    Attributes:
        status: `"finished"`, or `"diverged"` if the loss became NaN or infinite.
        steps: The number of training steps that were taken.
        data: The name of the data.
        measure: `"perplexity"`, `"error"` or `"excess loss"`. Lower is better.
        unit: The unit of the measure.
        validation: The final measure on the validation split; NaN if the run diverged.
        test: The same on the test split.
        curve: Pairs of a step and its validation measure.
        model_numbers: The number of trainable weights.
        model_bytes: Their size in bytes.
        numbers_held: The number of elements of the optimizer state, without the step
            count and the learning rate.
        bytes_held: Their size in bytes.
        adam_bytes: The size of Adam's state for this model, in bytes.
        times_less_than_adam: The elements of Adam's state over those of this
            optimizer; infinite if it has no state.
        ms_per_step: The median time of a training step in milliseconds, without the
            first step, which compiles; NaN if there was only one step.
        examples_per_second: Tokens or images per second at that time.
        peak_device_bytes: The peak memory of the training steps on the first GPU, or
            on the CPU if there is none: weights, state, gradients, activations and, on
            a CPU, prefetched batches. It excludes evaluation and the first step, which
            tries out kernels, except under JAX, which cannot reset its counter. `None`
            if there was only one step or the framework does not count memory, see
            `device.PeakMemory`.
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
        """Whether the loss became NaN or infinite."""
        return self.status == "diverged"

    @property
    def percent_of_adam(self):
        """The size of the state in per cent of Adam's."""
        return 100.0 * self.bytes_held / self.adam_bytes


class StepClock(keras.callbacks.Callback):
    """Times each training step.

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
        """The median over all steps except the first; NaN if there is no other."""
        after_compilation = self.seconds[1:]
        if not after_compilation:
            return math.nan
        return 1e3 * statistics.median(after_compilation)


class StepMemory(keras.callbacks.Callback):
    """Measures the peak memory of the training steps on the device.

    Attributes:
        bytes: The peak beyond the memory in use when this was created, over all steps
            except the first. JAX cannot reset its counter, so that the first step and
            evaluations count there. `None` if there was only one step or the framework
            does not count memory.
    """

    def __init__(self):
        super().__init__()
        self.bytes = None
        self._memory = device.PeakMemory()
        self._is_first = True

    def on_train_batch_begin(self, batch, logs=None):
        self._memory.reset()

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
    """Trains a new model.

    Args:
        run: The `Run`.
        task: Its task, loaded.
        on_step: Called without arguments after each training step.
        on_restore: Called with the step at which the run is resumed.
        checkpoint: A `Checkpoint` to resume from and to write; `None` for neither.
        callbacks: Further Keras callbacks.

    Returns:
        A `RunResult`. A run stops as `"diverged"` when its loss is NaN or infinite.
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
    # The optimizers of torch_optimizers.py have state outside Keras's variables.
    torch_state_size = getattr(model.optimizer, "torch_state_size", lambda: (0, 0))
    elements, state_bytes = torch_state_size()
    elements, state_bytes = memory.slots + elements, memory.bytes + state_bytes
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
        numbers_held=elements,
        bytes_held=state_bytes,
        adam_bytes=memory.adam_bytes,
        times_less_than_adam=memory.adam_slots / elements if elements else math.inf,
        ms_per_step=clock.ms_per_step,
        examples_per_second=task.examples_per_step * steps_per_second,
        peak_device_bytes=step_memory.bytes,
    )


def segments(run, first_step=0):
    """Divides the steps of a run at its evaluations.

    Args:
        run: The `Run`.
        first_step: The end of a segment; segments before it are left out.

    Returns:
        A list of pairs of the first step of a segment and the first step after it.
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
    """Trains until the end or until the run diverges, and extends the curve."""
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
            shuffle=False,  # The batches are already shuffled.
            verbose=0,
        )
        logs = {
            name.removeprefix("val_"): values[-1]
            for name, values in history.history.items()
            if name.startswith("val_")
        }
        # After `TerminateOnNaN` the weights are unusable.
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
