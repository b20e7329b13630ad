"""Draws the pictures of docs/pictures: `python docs/draw.py`.

They have a background of their own, so that they can be read on a light page and on a
dark one. A unit is a point, and y grows downwards, as on a page.
"""

import math
import pathlib

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, Rectangle
from matplotlib.text import Text

FOLDER = pathlib.Path(__file__).parent / "pictures"
POINTS_AN_INCH = 72
# Okabe and Ito's colours, which the colour-blind can tell apart.
BLUE, ORANGE, GREEN, INK, LINE = "#0072B2", "#E69F00", "#009E73", "#222222", "#B0B0B0"
PAPER, PALE_BLUE, PALE_ORANGE, PALE = "#FFFFFF", "#CFE3F0", "#F9E3B8", "#F0F0F0"


def picture(width, height, title, parts):
    """A picture.

    Args:
        width, height: Its size.
        title: What a reader who does not see it is told.
        parts: List of what is drawn, the last on top.

    Returns:
        `(figure, title)`.
    """
    size = width / POINTS_AN_INCH, height / POINTS_AN_INCH
    figure = Figure(figsize=size, facecolor=PAPER)
    FigureCanvasSVG(figure)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    for place, part in enumerate(parts):
        part.set_zorder(place)
        axes.add_artist(part)
    return figure, title


def box(x, y, width, height, fill=PALE, line=LINE):
    """A rectangle."""
    return Rectangle((x, y), width, height, facecolor=fill, edgecolor=line)


def words(x, y, text, anchor="center", size=14, weight="normal"):
    """A line of text on a baseline."""
    return Text(x, y, str(text), color=INK, ha=anchor, size=size, weight=weight)


def arrow(x, y, to_x, to_y):
    """A line with a head."""
    return FancyArrowPatch(
        (x, y),
        (to_x, to_y),
        arrowstyle="-|>",
        mutation_scale=16,
        color=INK,
        shrinkA=0,
        shrinkB=0,
    )


def tensor_index():
    """Level 1 of a matrix, and the digits of a row at level 2."""
    rows, columns, side, left, top = 6, 8, 28, 40, 70
    row, column = 2, 5
    parts = [words(152, 30, "level 1: rows and columns", weight="bold")]
    for i in range(rows):
        for j in range(columns):
            fill = PALE
            if i == row:
                fill = PALE_BLUE
            if j == column:
                fill = PALE_ORANGE
            if (i, j) == (row, column):
                fill = GREEN
            parts.append(box(left + side * j, top + side * i, side, side, fill))
    end, below = left + side * columns + 14, top + side * rows + 14
    for i in range(rows):
        fill = BLUE if i == row else PALE_BLUE
        parts.append(box(end, top + side * i, 20, side, fill))
    for j in range(columns):
        fill = ORANGE if j == column else PALE_ORANGE
        parts.append(box(left + side * j, below, side, 20, fill))
    parts += [
        words(end + 10, top - 10, "S₁", weight="bold"),
        words(left - 18, below + 16, "S₂", weight="bold"),
        words(152, below + 50, "6 + 8 numbers for 6 · 8 weights"),
    ]
    x, y = 390, 70
    parts.append(words(530, 30, "level 2: the digits of a row", weight="bold"))
    lines = [
        ("row k of 2000", "k = 50·a + b"),
        ("a: 40 values", "b: 50 values"),
    ]
    for place, (one, other) in enumerate(lines):
        parts.append(words(x, y + 26 * place, one, "left"))
        parts.append(words(x + 160, y + 26 * place, other, "left"))
    for count in range(20):
        parts.append(
            box(x + 14 * count, 120, 14, 22, BLUE if count == 8 else PALE_BLUE)
        )
    for count in range(20):
        parts.append(
            box(x + 14 * count, 170, 14, 22, ORANGE if count == 13 else PALE_ORANGE)
        )
    parts += [
        words(x + 290, 136, "… 40", "left"),
        words(x + 290, 186, "… 50", "left"),
        words(x, 228, "A row is scaled by the product of two numbers,", "left"),
        words(x, 250, "one of its digit a and one of its digit b:", "left"),
        words(x, 276, "40 + 50 numbers for 2000 rows.", "left"),
    ]
    return picture(740, 310, "A tensor index at level 1 and at level 2", parts)


def shade(value, least, largest):
    """A colour for a number, from white to blue, by its logarithm."""
    share = (math.log(value) - math.log(least)) / (math.log(largest) - math.log(least))
    share = min(max(share, 0.0), 1.0)
    light, dark = (247, 251, 255), (8, 48, 107)
    return "#" + "".join(
        f"{round(a + share * (b - a)):02x}" for a, b in zip(light, dark)
    )


def estimates(moments):
    """The geometric and the rank-one estimate of second moments, from slice means."""
    size = len(moments)
    of_rows = [sum(row) / size for row in moments]
    of_columns = [sum(row[j] for row in moments) / size for j in range(size)]
    mean = sum(of_rows) / size
    geometric = [[math.sqrt(r * c) for c in of_columns] for r in of_rows]
    rank_one = [[r * c / mean for c in of_columns] for r in of_rows]
    return geometric, rank_one


def combinations():
    """Second moments of two kinds, and what is estimated of them."""
    size, side = 12, 11
    order = [5, 0, 9, 3, 11, 7, 1, 10, 4, 8, 2, 6]
    outer = [
        [
            10.0 ** (-2.4 * order[i] / 11) * 10.0 ** (-1.6 * order[-j] / 11)
            for j in range(size)
        ]
        for i in range(size)
    ]
    diagonal = [[1.0 if i == j else 1e-4 for j in range(size)] for i in range(size)]
    parts = []
    for left, name, moments in (
        (20, "an outer product", outer),
        (500, "a diagonal", diagonal),
    ):
        geometric, rank_one = estimates(moments)
        parts.append(words(left + 220, 28, name, weight="bold"))
        shown = (
            ("second moments", moments),
            ("geometric", geometric),
            ("rank-one", rank_one),
        )
        for place, (label, values) in enumerate(shown):
            x = left + 154 * place
            for i, row in enumerate(values):
                for j, value in enumerate(row):
                    colour = shade(value, 1e-4, 1.0)
                    parts.append(
                        box(x + side * j, 48 + side * i, side, side, colour, colour)
                    )
            parts.append(box(x, 48, side * size, side * size, "none"))
            parts.append(words(x + 66, 202, label))
    return picture(
        980, 220, "The geometric and the rank-one estimate of second moments", parts
    )


def subspace():
    """How an update is split."""
    parts = [
        box(20, 70, 150, 110, PALE_BLUE),
        words(95, 120, "update U", weight="bold"),
        words(95, 142, "m × n"),
        arrow(170, 100, 250, 60),
        arrow(170, 150, 250, 200),
        box(254, 24, 250, 76, PALE_ORANGE),
        words(379, 50, "inside r directions: R = Pᵀ U", weight="bold"),
        words(379, 74, "averaged over time: M"),
        box(254, 164, 250, 76, PALE),
        words(379, 190, "outside them: U − P R", weight="bold"),
        words(379, 214, "used as it is"),
        arrow(504, 62, 584, 110),
        arrow(504, 202, 584, 150),
        box(588, 90, 150, 80, "#CFEBDD"),
        words(663, 124, "step", weight="bold"),
        words(663, 146, "P M + (U − P R)", size=13),
    ]
    return picture(760, 264, "Momentum in a subspace", parts)


def sm3():
    """The accumulators of a small matrix."""
    squares = [[4, 1, 9, 1], [1, 1, 2, 1], [16, 2, 4, 2]]
    of_rows = [max(row) for row in squares]
    of_columns = [max(row[j] for row in squares) for j in range(4)]
    side, left, top = 46, 60, 60
    parts = [
        words(left + 2 * side, 34, "g², and the largest of every slice", weight="bold")
    ]
    for i, row in enumerate(squares):
        for j, value in enumerate(row):
            x, y = left + side * j, top + side * i
            parts += [box(x, y, side, side), words(x + side / 2, y + 28, value)]
    for i, value in enumerate(of_rows):
        x, y = left + side * 4 + 12, top + side * i
        parts += [box(x, y, side, side, PALE_BLUE), words(x + side / 2, y + 28, value)]
    for j, value in enumerate(of_columns):
        x, y = left + side * j, top + side * 3 + 12
        parts += [
            box(x, y, side, side, PALE_ORANGE),
            words(x + side / 2, y + 28, value),
        ]
    left = 390
    parts.append(
        words(left + 2 * side, 34, "the smaller one of the two", weight="bold")
    )
    parts.append(arrow(310, top + 70, 372, top + 70))
    for i, row in enumerate(squares):
        for j, value in enumerate(row):
            x, y = left + side * j, top + side * i
            bound = min(of_rows[i], of_columns[j])
            exact = "#CFEBDD" if bound == value else PALE
            parts += [box(x, y, side, side, exact), words(x + side / 2, y + 28, bound)]
    parts.append(
        words(
            left + 2 * side,
            top + side * 3 + 42,
            "green: exact; all others are above g²",
            size=13,
        )
    )
    return picture(620, 290, "The accumulators of SM3", parts)


def frequent_directions():
    """One update of a sketch of four eigenvectors."""
    values, rank, unit, left, base = [9.0, 6.5, 4.0, 2.0, 1.1, 0.5], 4, 18, 60, 220
    least = values[rank - 1]
    parts = [words(190, 30, "eigenvalues of Ḡ + M", weight="bold")]
    for place, value in enumerate(values):
        x = left + 44 * place
        kept = max(value - least, 0.0) if place < rank else 0.0
        lost = value - kept
        parts.append(box(x, base - unit * value, 32, unit * kept, BLUE))
        parts.append(box(x, base - unit * lost, 32, unit * lost, PALE_ORANGE))
    line = base - unit * least
    parts += [
        Line2D([50, 330], [line, line], color=INK, linewidth=1, linestyle="dashed"),
        words(336, line + 5, "ρ = λ₄", "left"),
        words(192, 246, "λ₁ … λ₆ in descending order"),
        arrow(410, 130, 470, 130),
        words(610, 30, "what is kept", weight="bold"),
    ]
    for place in range(rank):
        kept = values[place] - least
        x = 500 + 44 * place
        if kept:
            parts.append(box(x, base - unit * kept, 32, unit * kept, BLUE))
        else:
            parts.append(box(x, base - 3, 32, 3, PALE))
    parts += [
        box(690, base - unit * least, 32, unit * least, PALE_ORANGE),
        words(588, 246, "λ − ρ, four eigenvectors"),
        words(706, 246, "+ ρ", weight="bold"),
    ]
    return picture(760, 268, "An update of a sketch by Frequent Directions", parts)


DRAWN = (tensor_index, combinations, subspace, sm3, frequent_directions)


def main(folder=FOLDER):
    """Writes all pictures into a folder."""
    folder.mkdir(exist_ok=True)
    # Text stays text, and the same picture the same file.
    matplotlib.rcParams |= {
        "svg.fonttype": "none",
        "svg.hashsalt": "et_optimizer",
        "font.family": "sans-serif",
    }
    for draw in DRAWN:
        figure, title = draw()
        path = folder / f"{draw.__name__}.svg"
        figure.savefig(path, metadata={"Title": title, "Date": None})
        print(path)


if __name__ == "__main__":
    main()
