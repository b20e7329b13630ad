"""The plots of a study."""

import dataclasses
import io
import itertools
import math

import pytest

from tests.tf_models.measured import entry, finished, result, summary
from tf_models.studies.figures import (
    LABEL_DIRECTIONS,
    NEAR_ENOUGH,
    learning_curves,
    measure_against_memory,
    memory_bars,
    sensitivity,
    trace_ratios,
)
from tf_models.studies.presets import PRESETS

ADAM_BYTES = 3_799_040


def one(label, bytes_held, perplexity):
    measured = result(perplexity, bytes_held=bytes_held, adam_bytes=ADAM_BYTES)
    return summary(label, measured)


# Close together on purpose: every label's first place is taken by another point.
CROWDED = [
    one("SGD", 0, 9.0),
    one("ET∞", 38, 8.9),
    one("ET3", 783, 7.05),
    one("ET2", 1_324, 7.0),
    one("ET2 again", 1_400, 7.0),
    one("ET1", 2_000, 7.02),
    one("Adafactor", 507_610, 6.4),
    one("Adam", 949_760, 6.4),
]
POINTS = [(s.first.bytes_held, s.first.validation) for s in CROWDED]


def points(axes):
    line = axes.lines[0]
    return list(zip(line.get_xdata(), line.get_ydata(), strict=True))


def lines(axes):
    """The legend's labels with the lines' points."""
    return {
        line.get_label(): list(zip(line.get_xdata(), line.get_ydata(), strict=True))
        for line in axes.lines
    }


def assert_is_drawn(figure):
    file = io.BytesIO()
    figure.savefig(file, format="png")
    assert file.getvalue().startswith(b"\x89PNG")


def test_each_entry_is_a_labelled_point_at_its_memory_and_measure():
    axes = measure_against_memory(CROWDED, "title").axes[0]
    assert points(axes) == POINTS
    names = [label.get_text() for label in axes.texts]
    assert names == [one.entry.label for one in CROWDED]
    assert [label.xy for label in axes.texts] == POINTS
    assert "bytes of optimizer state" in axes.get_xlabel()
    assert "validation perplexity, per byte" in axes.get_ylabel()


def test_labels_do_not_overlap_and_stay_in_the_plot():
    axes = measure_against_memory(CROWDED, "title").axes[0]
    boxes = [label.get_window_extent() for label in axes.texts]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    pixels = axes.transData.transform(POINTS)
    assert not any(box.contains(x, y) for box in boxes for x, y in pixels)
    frame = axes.get_window_extent()
    assert all(
        frame.contains(*corner) for box in boxes for corner in (box.min, box.max)
    )
    assert len(set(LABEL_DIRECTIONS)) == 8


def test_an_optimizer_without_state_is_at_0():
    axes = measure_against_memory(CROWDED, "title").axes[0]
    (zero, _), (few, _) = axes.transData.transform([(0, 9.0), (38, 8.9)])
    assert axes.get_window_extent().x0 < zero < few
    assert 0 in axes.get_xticks()


def test_several_seeds_give_their_mean_and_a_line_for_the_range():
    seeds = [result(value) for value in (6.0, 7.0, 9.5)]
    axes = measure_against_memory([summary("ET2", *seeds)], "title").axes[0]
    assert points(axes) == [(32, 7.5)]
    (segments,) = [c.get_segments() for c in axes.collections]
    assert segments[0].tolist() == [[32, 6.0], [32, 9.5]]


def test_the_memory_of_model_and_optimizer_includes_the_weights():
    shallow = summary("AdaGrad", result(7.0, model_bytes=1000, bytes_held=1000))
    deep = summary("ET2", result(6.0, model_bytes=1900, bytes_held=10))
    drawn = measure_against_memory([shallow, deep], "title", "model and optimizer")
    assert points(drawn.axes[0]) == [(2000, 7.0), (1910, 6.0)]
    assert "bytes of weights and state" in drawn.axes[0].get_xlabel()


def test_percentages_of_adams_memory_are_above_their_bytes():
    figure = measure_against_memory(CROWDED, "title")
    axes, above = figure.axes
    shares = dict(
        zip(
            [label.get_text() for label in above.get_xticklabels()],
            above.get_xticks(),
            strict=True,
        )
    )
    assert list(shares) == ["0.001%", "0.01%", "0.1%", "1%", "10%", "100%"]
    for share in shares.values():
        there, _ = above.transData.transform((share, 0))
        here, _ = axes.transData.transform((share / 100 * ADAM_BYTES, 0))
        assert there == pytest.approx(here)
    assert_is_drawn(figure)


@pytest.mark.parametrize("memory", ["optimizer", "model and optimizer"])
def test_different_models_have_no_percentages_of_adams_memory(memory):
    many = [
        summary("shallow", result(7.0)),
        summary("deep", result(6.0, model_bytes=4000, adam_bytes=8000)),
    ]
    assert len(measure_against_memory(many, "title", memory).axes) == 1


def test_a_distant_label_is_connected_to_its_point():
    stacked = [one(f"Adam with a long name {i}", ADAM_BYTES, 6.4) for i in range(12)]
    axes = measure_against_memory(stacked, "title").axes[0]
    boxes = [label.get_window_extent() for label in axes.texts]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    far = [t for t in axes.texts if max(map(abs, t.xyann)) > NEAR_ENOUGH]
    leads = axes.lines[1:]
    assert len(leads) == len(far) > 0
    assert all(
        line.get_xydata()[0] == pytest.approx((ADAM_BYTES, 6.4)) for line in leads
    )


def test_a_diverged_entry_is_named_below_the_plot():
    diverged = summary("SGD", result(math.nan), result(7.0))
    axes = measure_against_memory([diverged, *CROWDED[1:]], "title").axes[0]
    assert len(points(axes)) == len(CROWDED) - 1
    assert "Diverged: SGD" in axes.get_xlabel()


@pytest.mark.parametrize("memory", ["optimizer", "model and optimizer"])
def test_plots_can_be_drawn_if_all_entries_diverged(memory):
    diverged = [one("SGD", 0, math.nan)]
    assert_is_drawn(measure_against_memory(diverged, "title", memory))
    assert_is_drawn(learning_curves(diverged, "title"))
    sgd = entry("SGD")
    tried = [finished(sgd, rate, 0, result(math.nan)) for rate in (0.1, 0.2)]
    assert_is_drawn(sensitivity(tried, "title"))


def test_a_learning_curve_ends_where_the_run_diverged():
    wild = result(math.nan, curve=((5, 8.0), (7, math.nan)))
    figure = learning_curves([summary("SGD", wild), CROWDED[-1]], "title")
    assert lines(figure.axes[0]) == {
        "SGD": [(5, 8.0)],
        "Adam": [(5, 12.8), (10, 6.4)],
    }
    assert_is_drawn(figure)


def test_the_sensitivity_plot_shows_the_mean_of_the_seeds():
    adam = entry("Adam", rates=(0.2, 0.1, 0.4))
    measured = {(0.2, 0): 6.0, (0.2, 1): 8.0, (0.1, 0): 9.0, (0.1, 1): 9.0}
    tried = [finished(adam, *key, result(value)) for key, value in measured.items()]
    tried.append(finished(adam, 0.4, 0, result(math.nan)))
    tried.append(finished(adam, 0.4, 1, result(5.0)))
    figure = sensitivity(tried, "title")
    assert lines(figure.axes[0]) == {"Adam": [(0.1, 9.0), (0.2, 7.0)]}
    assert_is_drawn(figure)


def test_trace_ratios_are_drawn_over_steps_and_by_variable():
    ratios = {
        "dense/kernel/level_1/trace_ratio": 1.2,
        "dense/kernel/level_inf/trace_ratio": 1.9,
        "dense/bias/level_1/trace_ratio": 1.0,
        "dense/bias/level_inf/trace_ratio": 1.1,
        "level_1/trace_ratio": 1.15,
        "level_inf/trace_ratio": 1.8,
    }
    early = {name: 1.0 for name in ratios}
    figure = trace_ratios([(1, early), (2, ratios)], (1, "inf"), "title")
    course, bars = figure.axes
    assert lines(course) == {
        "level 1": [(1, 1.0), (2, 1.15)],
        "level inf": [(1, 1.0), (2, 1.8)],
    }
    drawn = [list(line.get_xdata()) for line in bars.lines]
    assert drawn == [[1.2, 1.0], [1.9, 1.1]]
    names = [label.get_text() for label in bars.get_yticklabels()]
    assert names == ["dense/kernel", "dense/bias"]
    assert_is_drawn(figure)


def test_every_entry_of_the_largest_study_has_its_own_line_style():
    many = [dataclasses.replace(s, entry=entry(str(i))) for i, s in enumerate(CROWDED)]
    many += [one(f"more {i}", 10 * i, 7.0) for i in range(13)]
    assert len(many) >= len(PRESETS["language"]("laptop").entries)
    axes = learning_curves(many, "title").axes[0]
    styles = {(line.get_color(), line.get_marker()) for line in axes.lines}
    assert len(styles) == len(many)


def test_memory_bars_are_stacked_and_labelled_with_their_sum():
    parts = {"weights": [1024, 2048], "state": [512, 0], "rest": [512, 1024]}
    figure = memory_bars(["Adam", "ET"], parts, ("KiB", 1024), "Two", lines=[3072])
    (axes,) = figure.axes
    found = {
        container.get_label(): [(bar.get_x(), bar.get_width()) for bar in container]
        for container in axes.containers
    }
    assert found == {
        "weights": [(0, 1), (0, 2)],
        "state": [(1, 0.5), (2, 0)],
        "rest": [(1.5, 0.5), (2, 1)],
    }
    assert [label.get_text().strip() for label in axes.texts] == ["2.0", "3.0"]
    (line,) = axes.lines
    assert set(line.get_xdata()) == {3}
    assert len({bar.get_facecolor() for bar in axes.patches}) == 3
