"""Checkpoints from which a stopped run resumes."""

import json
import math
import pathlib

from tf_models.console.output import replacing

PROGRESS_NAME = "progress.json"
WEIGHTS_NAME = "checkpoint_step_{}.weights.h5"


class CheckpointError(ValueError):
    """A run cannot resume from a checkpoint; the message says why."""


class Checkpoint:
    """The weights, the optimizer state and the progress of a run.

    A run that was killed and resumed ends with the same weights, bit for bit, as an
    undisturbed one, because its batches depend only on the seed and the step. There is
    one checkpoint at a time, and it is complete whenever the run is killed.

    Args:
        directory: A path, created with the first checkpoint.
        data: The name of the run's data, `LoadedTask.data`. A run on other data is
            another run. Defaults to `None`.
    """

    def __init__(self, directory, data=None):
        self._directory = pathlib.Path(directory).expanduser()
        self._data = data

    def restore(self, model, run):
        """Restores a model from the checkpoint, if there is one.

        Args:
            model: The run's compiled model, with a built optimizer.
            run: The `Run`.

        Returns:
            The validation curve up to the checkpoint; empty if there is none.

        Raises:
            CheckpointError: the checkpoint belongs to another run or is invalid.
        """
        progress = self._read()
        if progress is None:
            return []
        other = _differences(progress["run"], self._identity(run))
        if other:
            raise CheckpointError(
                f"The checkpoint in {str(self._directory)!r} is of another run: "
                f"{other}. Name another directory, or give the flags of that run."
            )
        self._load_weights(model, self._directory / progress["weights"])
        # JSON has no NaN: a diverged run wrote null.
        return [
            (step, math.nan if value is None else value)
            for step, value in progress["curve"]
        ]

    def save(self, model, run, curve):
        """Writes a checkpoint, then removes the previous one.

        Args:
            model: The run's model.
            run: The `Run`.
            curve: Its validation curve so far.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        path = self._directory / WEIGHTS_NAME.format(curve[-1][0])
        with replacing(path) as temporary:
            model.save_weights(temporary, overwrite=True)
        progress = {
            "run": self._identity(run),
            "weights": path.name,
            "curve": [
                (step, value if math.isfinite(value) else None) for step, value in curve
            ],
        }
        with replacing(self._directory / PROGRESS_NAME) as temporary:
            pathlib.Path(temporary).write_text(json.dumps(progress), encoding="utf-8")
        # The directory may hold other weights, which stay.
        for other in self._directory.glob(WEIGHTS_NAME.format("*")):
            if other != path:
                other.unlink()

    def _identity(self, run):
        return run.identity() | {"data": self._data}

    def _load_weights(self, model, path):
        try:
            model.load_weights(path)
        except (OSError, KeyError, ValueError) as error:
            raise CheckpointError(
                f"{str(path)!r} is not the weights of a run ({error}). Remove "
                f"{str(path.parent / PROGRESS_NAME)!r} to start again."
            ) from None

    def _read(self):
        path = self._directory / PROGRESS_NAME
        if not path.exists():
            return None
        try:
            progress = json.loads(path.read_text(encoding="utf-8"))
            if {"run", "weights", "curve"} <= progress.keys():
                return progress
            raise ValueError("a key is missing")
        except (ValueError, AttributeError) as error:
            raise CheckpointError(
                f"{str(path)!r} is not the progress of a run ({error}). Remove it to "
                "start again."
            ) from None


def _differences(theirs, ours, prefix=""):
    """The differences of two runs as text; empty if they are equal."""
    found = []
    for key in sorted(theirs.keys() | ours.keys()):
        one, other = theirs.get(key), ours.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            found.append(_differences(one, other, f"{prefix}{key}."))
        elif one != other:
            found.append(f"its {prefix}{key} is {one!r}, not {other!r}")
    return "; ".join(filter(None, found))
