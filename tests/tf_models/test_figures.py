"""The plot of perplexity against memory."""

import dataclasses
import io
import itertools
import math

from tf_models.figure import perplexity_against_memory
from tf_models.training import RunResult


def result(label, numbers_held, perplexity):
    status = "diverged" if math.isnan(perplexity) else "finished"
    return RunResult(
        label, label, 1e-3, status, 10, numbers_held, 0, 1.0, perplexity, 1.0
    )


# Close together on purpose: every label's first place is taken by another point.
CROWDED = [
    result("SGD", 0, 9.0),
    result("ET∞", 38, 8.9),
    result("ET3", 783, 7.05),
    result("ET2", 1_324, 7.0),
    result("ET2 again", 1_400, 7.0),
    result("ET1", 2_000, 7.02),
    result("Adafactor", 507_610, 6.4),
    result("Adam", 949_760, 6.4),
]


def test_each_finished_run_is_a_labelled_point_at_its_memory_and_perplexity():
    axes = perplexity_against_memory(CROWDED, "title").axes[0]
    (points,) = axes.lines
    drawn = list(zip(points.get_xdata(), points.get_ydata(), strict=True))
    assert drawn == [(r.numbers_held, r.perplexity) for r in CROWDED]
    assert [label.get_text() for label in axes.texts] == [r.label for r in CROWDED]
    assert [label.xy for label in axes.texts] == drawn


def test_no_label_covers_a_label_or_a_point_or_leaves_the_plot():
    figure = perplexity_against_memory(CROWDED, "title")
    axes = figure.axes[0]
    boxes = [label.get_window_extent() for label in axes.texts]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    pixels = axes.transData.transform([(r.numbers_held, r.perplexity) for r in CROWDED])
    assert not any(box.contains(x, y) for box in boxes for x, y in pixels)
    frame = axes.get_window_extent()
    assert all(
        frame.contains(*corner) for box in boxes for corner in (box.min, box.max)
    )


def test_an_optimizer_that_holds_nothing_stands_at_0_left_of_all_others():
    axes = perplexity_against_memory(CROWDED, "title").axes[0]
    (zero, _), (few, _) = axes.transData.transform([(0, 9.0), (38, 8.9)])
    assert axes.get_window_extent().x0 < zero < few
    assert min(axes.get_xticks()) == 0 or axes.get_xlim()[0] > min(axes.get_xticks())


def test_a_run_that_diverged_is_named_and_not_drawn():
    diverged = dataclasses.replace(CROWDED[0], status="diverged", perplexity=math.nan)
    axes = perplexity_against_memory([diverged, *CROWDED[1:]], "title").axes[0]
    assert len(axes.lines[0].get_xdata()) == len(CROWDED) - 1
    assert "Diverged: SGD" in axes.get_xlabel()


def test_a_comparison_in_which_all_diverged_still_has_its_plot():
    figure = perplexity_against_memory([result("SGD", 0, math.nan)], "title")
    file = io.BytesIO()
    figure.savefig(file, format="png")
    assert file.getvalue().startswith(b"\x89PNG")
