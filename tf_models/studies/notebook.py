"""A study in a notebook: a bar of its steps, and pictures that grow with its runs."""

import itertools
import time

from IPython.display import ProgressBar, display

from tf_models.studies.study import Finished, summarize
from tf_models.studies.training import train

# A message to the browser for each step would take longer than a small step.
STEPS_A_MESSAGE = 10


def step_bar(total):
    """Shows a bar of steps.

    Args:
        total: How many there will be.

    Returns:
        A function without arguments, to be called after each.
    """
    bar = ProgressBar(total)
    bar.display()
    steps_done = itertools.count(1)

    def on_step():
        done = next(steps_done)
        if done % STEPS_A_MESSAGE == 0:
            bar.progress = done

    return on_step


def run_and_draw(study, loaded, draw):
    """Runs each entry of a study at its first rate, and draws all after each of them.

    Args:
        study: The `Study`. Its first seed is taken.
        loaded: The `LoadedTask` of its entries.
        draw: Functions from a list of `Summary`s to a `matplotlib.figure.Figure`.

    Returns:
        `(finished, seconds)`: a list of `Finished` runs, and a dict from the names of
        entries to how long each took, with all that was compiled.
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
