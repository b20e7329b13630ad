"""Runs a study in a notebook, with a progress bar and plots after every run."""

import itertools
import time

from IPython.display import ProgressBar, display

from tf_models.studies.study import Finished, summarize
from tf_models.studies.training import train

# Updating the bar takes longer than a small step.
STEPS_PER_UPDATE = 10


def step_bar(total):
    """Shows a progress bar.

    Args:
        total: The number of steps.

    Returns:
        A function without arguments, to be called after each step.
    """
    bar = ProgressBar(total)
    bar.display()
    steps_done = itertools.count(1)

    def on_step():
        done = next(steps_done)
        if done % STEPS_PER_UPDATE == 0:
            bar.progress = done

    return on_step


def run_and_draw(study, loaded, draw):
    """Runs each entry of a study at its first learning rate, and draws the results.

    Args:
        study: The `Study`. Only its first seed runs.
        loaded: The `LoadedTask` of its entries.
        draw: Functions from a list of `Summary` to a `matplotlib.figure.Figure`. The
            figures are updated after each run.

    Returns:
        `(finished, seconds)`: a list of `Finished` runs, and a dict from the names of
        entries to the duration of their runs, including compilation.
    """
    on_step = step_bar(len(study.entries) * study.steps)
    handles = [display(display_id=True) for _ in draw]
    finished, seconds = [], {}
    for entry in study.entries:
        run = study.run(entry, entry.rates[0], study.seeds[0])
        start = time.perf_counter()
        result = train(run, loaded, on_step=on_step)
        seconds[entry.name] = time.perf_counter() - start
        finished.append(Finished(entry, run, result))
        summaries = summarize(study, finished)
        for one, handle in zip(draw, handles):
            handle.update(one(summaries))
    return finished, seconds
