"""The plot of validation perplexity against optimizer memory."""

import itertools

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, SymmetricalLogLocator
from matplotlib.transforms import Bbox

# The axis is linear from 0, where SGD is, to here, and logarithmic beyond.
LINEAR_UP_TO = 10
POINT_SIZE = 9
POINT_COLOR = "#1f77b4"
# Where a label may go, nearest first: distances in points, and at each distance the
# directions (right, up) from the point.
LABEL_DISTANCES = (10, 20, 32, 46)
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


def perplexity_against_memory(results, title):
    """Draws the finished runs, one labelled point each.

    Args:
        results: `RunResult`s; those that diverged are named below the plot.
        title: What the runs have in common, in a line.

    Returns:
        A `matplotlib.figure.Figure`; its `savefig` writes a file.
    """
    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    finished = [result for result in results if result.status == "finished"]
    diverged = [result.label for result in results if result.status == "diverged"]
    axes.plot(
        [result.numbers_held for result in finished],
        [result.perplexity for result in finished],
        linestyle="none",
        marker="o",
        markersize=POINT_SIZE,
        color=POINT_COLOR,
    )
    _dress_axes(axes, title, diverged)
    _label_points(axes, finished)
    return figure


def _dress_axes(axes, title, diverged):
    axes.set_title(title, loc="left", fontsize="medium")
    axes.set_xscale("symlog", linthresh=LINEAR_UP_TO, linscale=0.5)
    axes.xaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=LINEAR_UP_TO))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.margins(x=0.12, y=0.15)
    axes.set_xlim(left=-LINEAR_UP_TO / 4)
    below = f"\nDiverged: {', '.join(diverged)}" if diverged else ""
    axes.set_xlabel("numbers the optimizer holds (left is better)" + below)
    axes.set_ylabel("validation perplexity a byte (lower is better)")
    axes.grid(True, color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _label_points(axes, results):
    """Puts each label at the first place where it covers no point and no label."""
    axes.figure.draw_without_rendering()  # Settles the layout, hence the pixels.
    taken = [_point_box(axes, result) for result in results]
    for result in results:
        taken.append(_place_label(axes, result, taken))


def _point_box(axes, result):
    x, y = axes.transData.transform((result.numbers_held, result.perplexity))
    radius = POINT_SIZE / 2 * axes.figure.dpi / 72
    return Bbox.from_extents(x - radius, y - radius, x + radius, y + radius)


def _place_label(axes, result, taken):
    """Places one label and returns the box it takes, in pixels."""
    label = axes.annotate(
        result.label,
        (result.numbers_held, result.perplexity),
        xytext=(0, 0),
        textcoords="offset points",
    )
    for distance, direction in itertools.product(LABEL_DISTANCES, LABEL_DIRECTIONS):
        _move_label(label, direction, distance)
        box = label.get_window_extent()
        if _is_inside(box, axes) and not any(map(box.overlaps, taken)):
            break
    return box


def _move_label(label, direction, distance):
    right, up = direction
    label.xyann = (right * distance, up * distance)
    label.set_horizontalalignment({1: "left", 0: "center", -1: "right"}[right])
    label.set_verticalalignment({1: "bottom", 0: "center", -1: "top"}[up])


def _is_inside(box, axes):
    frame = axes.get_window_extent()
    across = frame.x0 <= box.x0 and box.x1 <= frame.x1
    return across and frame.y0 <= box.y0 and box.y1 <= frame.y1
