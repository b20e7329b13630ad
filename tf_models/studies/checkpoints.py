"""Checkpoints of a run, from which it goes on as if nothing had stopped it."""

import json
import math
import pathlib

from tf_models.console.output import replacing

PROGRESS_NAME = "progress.json"
WEIGHTS_NAME = "checkpoint_step_{}.weights.h5"


class CheckpointError(ValueError):
    """A checkpoint that a run cannot go on from: its message says why."""


class Checkpoint:
    """What a run needs to go on: weights, optimizer state, and how far it came.

    A run that was killed and started again ends with the weights, bit for bit, of one
    that was not: its batches are a function of the seed and the step. There is one
    checkpoint at a time, and whatever moment a run is killed at, a whole one.

    Args:
        directory: A path; made when there is something to write.
        data: What the run's data are, as `LoadedTask.data` says it: with other data it
            is another run, whatever its flags. Defaults to `None`.
    """

    def __init__(self, directory, data=None):
        self._directory = pathlib.Path(directory).expanduser()
        self._data = data

    def restore(self, model, run):
        """Gives a model the state of the checkpoint, if there is one.

        Args:
            model: The run's model, compiled, its optimizer built.
            run: The `Run`.

        Returns:
            The run's validation curve up to there; empty where there is none.

        Raises:
            CheckpointError: the checkpoint is another run's, or is not one.
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
        # JSON has no NaN: a run that diverged wrote null.
        return [
            (step, math.nan if value is None else value)
            for step, value in progress["curve"]
        ]

    def save(self, model, run, curve):
        """Writes a checkpoint, then removes the one before.

        Args:
            model: The run's model.
            run: The `Run`.
            curve: Its validation curve up to here.
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
        # Ours alone: the directory may hold other weights.
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
                f"{str(path.parent / PROGRESS_NAME)!r} to begin anew."
            ) from None

    def _read(self):
        path = self._directory / PROGRESS_NAME
        if not path.exists():
            return None
        try:
            progress = json.loads(path.read_text(encoding="utf-8"))
            if {"run", "weights", "curve"} <= progress.keys():
                return progress
            raise ValueError("it lacks a key")
        except (ValueError, AttributeError) as error:
            raise CheckpointError(
                f"{str(path)!r} is not the progress of a run ({error}). Remove it to "
                "begin anew."
            ) from None


def _differences(theirs, ours, prefix=""):
    """What two runs differ in, in words; empty where they are the same."""
    found = []
    for key in sorted(theirs.keys() | ours.keys()):
        one, other = theirs.get(key), ours.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            found.append(_differences(one, other, f"{prefix}{key}."))
        elif one != other:
            found.append(f"its {prefix}{key} is {one!r}, not {other!r}")
    return "; ".join(filter(None, found))
