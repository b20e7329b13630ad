"""One run of a comparison: train a model with an optimizer and measure both."""

import dataclasses
import math
import statistics
import sys
import time

import keras

from et_optimizer import memory_report
from tf_models.data import byte_vocabulary
from tf_models.data.windows import shuffled_windows, window_count
from tf_models.transformer import transformer_language_model

# The validation windows are the same for every run, every seed and every batch size:
# about this many bytes, drawn from all over the split.
VALIDATION_BYTES = 128 * 1024
VALIDATION_BATCH_BYTES = 4 * 1024
VALIDATION_SEED = 0
# The largest float has this logarithm; NaN is not less than it either.
LARGEST_LOSS = math.log(sys.float_info.max)


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all runs of a comparison share.

    Attributes:
        steps: Training steps a run.
        batch_size: Windows a training batch.
        sequence_length: Bytes a window predicts.
        seed: Selects the initial weights and the order of the batches.
    """

    steps: int
    batch_size: int
    sequence_length: int
    seed: int


@dataclasses.dataclass(frozen=True)
class RunResult:
    """What one run measured.

    Attributes:
        optimizer: The contender's name.
        label: Its name in the table and the plot.
        learning_rate: The peak of its schedule.
        status: `"finished"`, or `"diverged"` where the loss stopped being a number.
        steps: Training steps made.
        numbers_held: Numbers the optimizer holds, without step count and rate.
        bytes_held: The bytes they take.
        times_less_than_adam: Adam's numbers held over this optimizer's; infinite
            for one that holds none.
        perplexity: Validation perplexity a byte; NaN where the run diverged.
        ms_per_step: Median time of a training step in milliseconds, without the
            first step, which compiles; NaN where there was no second.
    """

    optimizer: str
    label: str
    learning_rate: float
    status: str
    steps: int
    numbers_held: int
    bytes_held: int
    times_less_than_adam: float
    perplexity: float
    ms_per_step: float


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


def train_and_measure(contender, setting, train_tokens, validation_tokens, on_step):
    """Trains a new model from the setting's weights on the setting's batches.

    Args:
        contender: The `Contender` whose optimizer trains it.
        setting: The `Setting`.
        train_tokens: Token stream to train on.
        validation_tokens: Token stream to validate on.
        on_step: Called without arguments after each training step.

    Returns:
        A `RunResult`. A run whose loss is no longer a finite number stops there and
        is `"diverged"`.
    """
    keras.backend.clear_session()
    keras.utils.set_random_seed(setting.seed)
    model = transformer_language_model(byte_vocabulary.SIZE, setting.sequence_length)
    optimizer = contender.optimizer(setting.steps)
    model.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=True,
    )
    clock = StepClock(on_step)
    model.fit(
        training_batches(train_tokens, setting),
        callbacks=[clock, keras.callbacks.TerminateOnNaN()],
        shuffle=False,  # The batches are shuffled.
        verbose=0,
    )
    # `TerminateOnNaN` stopped it: the weights are past use.
    diverged = model.stop_training
    perplexity = (
        math.nan if diverged else _perplexity(model, validation_tokens, setting)
    )
    memory = memory_report(optimizer)
    return RunResult(
        optimizer=contender.name,
        label=contender.label,
        learning_rate=contender.learning_rate,
        status="diverged" if math.isnan(perplexity) else "finished",
        steps=len(clock.seconds),
        numbers_held=memory.slots,
        bytes_held=memory.bytes,
        times_less_than_adam=_ratio(memory.adam_slots, memory.slots),
        perplexity=perplexity,
        ms_per_step=clock.ms_per_step,
    )


def training_batches(tokens, setting):
    """Makes the training batches of a setting, the same for every run."""
    return shuffled_windows(
        tokens,
        setting.sequence_length,
        setting.batch_size,
        steps=setting.steps,
        seed=setting.seed,
    )


def validation_batches(tokens, sequence_length):
    """Makes the fixed validation batches for a length of window."""
    windows = min(
        VALIDATION_BYTES // sequence_length, window_count(tokens, sequence_length)
    )
    batch_size = max(1, min(windows, VALIDATION_BATCH_BYTES // sequence_length))
    return shuffled_windows(
        tokens,
        sequence_length,
        batch_size,
        steps=windows // batch_size,
        seed=VALIDATION_SEED,
    )


def _perplexity(model, tokens, setting):
    """Validation perplexity a byte; NaN where it is not a finite float."""
    loss = model.evaluate(
        validation_batches(tokens, setting.sequence_length), verbose=0
    )
    return math.exp(loss) if loss < LARGEST_LOSS else math.nan


def _ratio(numerator, denominator):
    return numerator / denominator if denominator else math.inf
