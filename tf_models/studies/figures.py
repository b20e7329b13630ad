"""The plots of a study."""

import dataclasses
import itertools
import math
import statistics

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import (
    AutoLocator,
    FuncFormatter,
    LogLocator,
    NullFormatter,
    NullLocator,
    SymmetricalLogLocator,
)
from matplotlib.transforms import Bbox

# The axis of bytes is linear up to here (SGD has 0 bytes) and logarithmic beyond.
LINEAR_UP_TO = 10
# If measures differ by more than this factor, their axis is logarithmic.
LARGE_RATIO = 10
# The percentages of Adam's memory above the plot.
PERCENTS_OF_ADAM = (0.001, 0.01, 0.1, 1, 10, 100)
POINT_SIZE = 9
# The colors of Okabe and Ito, which color-blind readers can distinguish.
COLORS = ("#0072B2", "#E69F00", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#000000")
# Possible places of a label, nearest first: distances in points, and directions (right,
# up) from the point. A thin line connects a distant label with its point.
LABEL_DISTANCES = (10, 20, 32, 46, 62, 80, 100, 125)
NEAR_ENOUGH = 20
LABEL_DIRECTIONS = (
    (1, 0),
    (0, 1),
    (0, -1),
    (-1, 0),
    (1, 1),
    (1, -1),
    (-1, 1),
    (-1, -1),
)


def measure_against_memory(summaries, title, memory="optimizer"):
    """Draws the results of a study against memory.

    Args:
        summaries: `Summary` objects. Each is a labelled point with a line for the range
            of its seeds. Diverged entries are named below the plot. If Adam's memory is
            the same for all, percentages of it are above the plot.
        title: One line that says what the runs have in common.
        memory: `"optimizer"`, or `"model and optimizer"` to count the weights too.

    Returns:
        A `matplotlib.figure.Figure`; its `savefig` writes a file.
    """
    figure, axes = _new_figure(title, size=(11, 6.5))
    finished = [summary for summary in summaries if not summary.diverged]
    diverged = [summary.entry.label for summary in summaries if summary.diverged]
    points = [
        Point(summary.entry.label, _memory(summary, memory), summary.mean())
        for summary in finished
    ]
    # The rounded mean of equal numbers can lie outside their range.
    below = [max(0.0, p.y - s.spread()[0]) for p, s in zip(points, finished)]
    above = [max(0.0, s.spread()[1] - p.y) for p, s in zip(points, finished)]
    axes.errorbar(
        [point.x for point in points],
        [point.y for point in points],
        [below, above],
        linestyle="none",
        marker="o",
        markersize=POINT_SIZE,
        color=COLORS[0],
    )
    axes.margins(x=0.12, y=0.15)
    if memory == "optimizer":
        _scale_from_0(axes, LINEAR_UP_TO)
        axes.xaxis.set_major_locator(
            SymmetricalLogLocator(base=10, linthresh=LINEAR_UP_TO)
        )
        axes.set_xlim(left=-LINEAR_UP_TO / 4)
        _show_percents_of_adam(axes, {s.first.adam_bytes for s in finished})
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    values = [point.y for point in points]
    if values and 0 < LARGE_RATIO * min(values) < max(values):
        _make_logarithmic(axes, "y")
    what = "optimizer state" if memory == "optimizer" else "weights and state"
    _name_axes(
        axes,
        f"bytes of {what} (left is better)"
        + (f"\nDiverged: {', '.join(diverged)}" if diverged else ""),
        _measure(summaries[0].first),
    )
    _label_points(axes, points)
    return figure


def learning_curves(summaries, title):
    """Draws the validation measure over the steps, for the first seed.

    Args:
        summaries: `Summary` objects, one line each.
        title: One line that says what the runs have in common.

    Returns:
        A `matplotlib.figure.Figure`.
    """
    figure, axes = _new_figure(title)
    for summary, style in zip(summaries, _styles()):
        curve = [pair for pair in summary.first.curve if math.isfinite(pair[1])]
        axes.plot(
            [step for step, _ in curve],
            [value for _, value in curve],
            label=summary.entry.label,
            **style,
        )
    _make_logarithmic(axes, "y")
    _name_axes(axes, "training steps", _measure(summaries[0].first))
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def sensitivity(finished, title):
    """Draws the validation measure against the learning rate, one line per entry.

    Args:
        finished: `Finished` runs of the seeds on which every learning rate was tried.
            Diverged runs have no point.
        title: One line that says what the runs have in common.

    Returns:
        A `matplotlib.figure.Figure`.
    """
    figure, axes = _new_figure(title)
    by_label = {}
    for one in finished:
        rates = by_label.setdefault(one.entry.label, {})
        rates.setdefault(one.run.learning_rate, []).append(one.result.validation)
    for (label, rates), style in zip(by_label.items(), _styles()):
        tried = [(r, statistics.fmean(rates[r])) for r in sorted(rates)]
        axes.plot(
            [rate for rate, value in tried if math.isfinite(value)],
            [value for _, value in tried if math.isfinite(value)],
            label=label,
            **style,
        )
    _make_logarithmic(axes, "x", "y")
    _name_axes(axes, "peak learning rate", _measure(finished[0].result))
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def trace_ratios(measurements, levels, title):
    """Draws √(Tr H / Tr Ĥ) at every level, over the steps and by variable.

    Args:
        measurements: List of pairs of a step and a dict of ratios, by the names that
            `PreconditionerQuality` logs.
        levels: The levels.
        title: The title in one line.

    Returns:
        A `matplotlib.figure.Figure` with two plots: the ratio of the whole model over
        the steps, and the final ratio of each variable.
    """
    figure = Figure(figsize=(12, 6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.01, ha="left", fontsize="medium")
    course, bars = figure.subplots(1, 2, width_ratios=(1, 1.6))
    last = measurements[-1][1]
    suffix = "/trace_ratio"
    paths = [
        name.removesuffix(f"/level_{levels[0]}{suffix}")
        for name in last
        if name.endswith(f"/level_{levels[0]}{suffix}")
    ]
    for number, level in enumerate(levels):
        color = COLORS[number % len(COLORS)]
        name = f"level_{level}{suffix}"
        course.plot(
            [step for step, _ in measurements],
            [ratios[name] for _, ratios in measurements],
            color=color,
            label=f"level {level}",
        )
        bars.plot(
            [last[f"{path}/{name}"] for path in paths],
            range(len(paths)),
            linestyle="none",
            marker="o",
            markersize=4,
            color=color,
        )
    course.set_ylim(bottom=1)
    course.legend(fontsize="small")
    _name_axes(course, "training steps", "√(Tr H / Tr Ĥ), all variables (1 is AdaGrad)")
    bars.set_yticks(range(len(paths)), paths, fontsize="xx-small")
    bars.invert_yaxis()
    _name_axes(bars, "√(Tr H / Tr Ĥ) at the end", "")
    return figure


@dataclasses.dataclass(frozen=True)
class Point:
    """A point of a plot with its label."""

    label: str
    x: float
    y: float


def _memory(summary, memory):
    weights = 0 if memory == "optimizer" else summary.first.model_bytes
    return weights + summary.first.bytes_held


def _scale_from_0(axes, linear_up_to):
    axes.set_xscale("symlog", linthresh=linear_up_to, linscale=0.5)


def _show_percents_of_adam(axes, adam_bytes):
    """Adds an axis of percentages of Adam's bytes above the plot."""
    if len(adam_bytes) != 1:
        return
    percents_a_byte = 100 / adam_bytes.pop()
    above = axes.twiny()
    # The same scale in another unit puts each percentage above its bytes.
    _scale_from_0(above, LINEAR_UP_TO * percents_a_byte)
    low, high = (percents_a_byte * limit for limit in axes.get_xlim())
    above.set_xticks([p for p in PERCENTS_OF_ADAM if low <= p <= high])
    above.set_xlim(low, high)
    above.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}%"))
    above.xaxis.set_minor_locator(NullLocator())
    above.set_xlabel("of Adam's state", fontsize="small")
    above.tick_params(labelsize="small")
    above.spines[["right"]].set_visible(False)


def _measure(result):
    """The label of the vertical axis."""
    return f"validation {result.measure}, {result.unit} (lower is better)"


def memory_bars(labels, parts, unit, title, lines=()):
    """Draws memory as stacked bars.

    Args:
        labels: The labels of the bars, from top to bottom.
        parts: Dict from the name of a part to its bytes in each bar. The last part is
            gray, for the rest.
        unit: The unit of the axis as `(name, bytes)`, such as `("MiB", 2**20)`.
        title: One line that says what the bars have in common.
        lines: Amounts in bytes that get a dashed line.

    Returns:
        A `matplotlib.figure.Figure`.
    """
    name, size = unit
    figure, axes = _new_figure(title, size=(8, 1.2 + 0.45 * len(labels)))
    left = [0.0] * len(labels)
    colors = [COLORS[3], COLORS[2], *COLORS[4:]][: len(parts) - 1] + ["0.75"]
    for (part, amounts), color in zip(parts.items(), colors, strict=True):
        amounts = [amount / size for amount in amounts]
        axes.barh(labels, amounts, left=left, color=color, label=part)
        left = [start + more for start, more in zip(left, amounts, strict=True)]
    for row, end in enumerate(left):
        axes.annotate(f" {end:.1f}", (end, row), va="center")
    for amount in lines:
        axes.axvline(amount / size, color="0.3", linestyle="--")
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlabel(name)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, ncols=len(parts), loc="outside lower left")
    return figure


def _new_figure(title, size=(8, 5)):
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize="medium")
    return figure, axes


def _name_axes(axes, x, y):
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(True, color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _make_logarithmic(axes, *directions):
    """Makes axes logarithmic, unless no value is positive."""
    if not any(y > 0 for line in axes.lines for y in line.get_ydata()):
        return
    axes.set(**{f"{direction}scale": "log" for direction in directions})
    low, high = axes.get_ylim()
    decades = math.log10(high / low)
    if decades < 1:
        axes.yaxis.set_major_locator(AutoLocator())
    elif decades < 3:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _styles():
    """Yields line styles that differ in color, then in dashes and marker."""
    rounds = (("o", "-"), ("s", "--"), ("^", ":"), ("D", "-."), ("v", (0, (1, 5))))
    for (marker, dashes), color in itertools.product(rounds, COLORS):
        yield {
            "color": color,
            "marker": marker,
            "linestyle": dashes,
            "markersize": 4,
        }


def _label_points(axes, points):
    """Puts each label at the first place where it covers no point and no label."""
    axes.figure.draw_without_rendering()  # Fixes the layout, and with it the pixels.
    axes.autoscale(False)
    taken = [_point_box(axes, point) for point in points]
    for point in points:
        taken.append(_place_label(axes, point, taken))


def _point_box(axes, point):
    x, y = axes.transData.transform((point.x, point.y))
    radius = POINT_SIZE / 2 * axes.figure.dpi / 72
    return Bbox.from_extents(x - radius, y - radius, x + radius, y + radius)


def _place_label(axes, point, taken):
    """Places a label and returns its box in pixels."""
    label = axes.annotate(
        point.label,
        (point.x, point.y),
        xytext=(0, 0),
        textcoords="offset points",
    )
    for distance, direction in itertools.product(LABEL_DISTANCES, LABEL_DIRECTIONS):
        _move_label(label, direction, distance)
        box = label.get_window_extent()
        if _is_inside(box, axes) and not any(map(box.overlaps, taken)):
            break
    if distance > NEAR_ENOUGH:
        _lead_to(axes, point, label)
    return box


def _lead_to(axes, point, label):
    """Draws a line from a point to its label."""
    pixels_a_point = axes.figure.dpi / 72
    here = axes.transData.transform((point.x, point.y))
    there = here + [pixels_a_point * offset for offset in label.xyann]
    ends = axes.transData.inverted().transform([here, there])
    axes.plot(*ends.T, color="0.6", linewidth=0.7, zorder=1)


def _move_label(label, direction, distance):
    right, up = direction
    label.xyann = (right * distance, up * distance)
    label.set_horizontalalignment({1: "left", 0: "center", -1: "right"}[right])
    label.set_verticalalignment({1: "bottom", 0: "center", -1: "top"}[up])


def _is_inside(box, axes):
    frame = axes.get_window_extent()
    across = frame.x0 <= box.x0 and box.x1 <= frame.x1
    return across and frame.y0 <= box.y0 and box.y1 <= frame.y1
