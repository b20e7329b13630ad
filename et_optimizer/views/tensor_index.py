"""A tensor index: the entries of one variable, viewed as a p-way tensor.

Plain Python on shapes: nothing here touches a tensor or a framework.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from et_optimizer import checks
from et_optimizer.types import (
    ByPath,
    KeptAxis,
    Level,
    NamedShapes,
    Shape,
    Sizes,
    T,
    TensorIndices,
)

# A padded split is taken only if the exact one has over 10% more slices than the best
# padded one, so that 512 stays 16 x 32 (48 slices; 23 x 23 would have 46) while
# 50257 = 29 x 1733 becomes 224 x 225.
EXACT_SPLIT_TOLERANCE = 1.1
# Beyond this level every factor of any axis is prime or at most 3.
LAST_LEVEL = 64


@dataclasses.dataclass(frozen=True)
class Axis:
    """One axis of a tensor index's view, and the modes that its positions split into.

    Position k of the axis has the mixed-radix digits of k in `modes` (the last mode
    runs fastest). The modes may have more cells than the axis has positions: the last
    cells then never receive gradient. All positions of an axis without modes share
    their slices.
    """

    length: int
    modes: tuple[int, ...]

    @property
    def cells(self) -> int:
        """The number of cells of the modes' grid; at least `length`."""
        return math.prod(self.modes)

    def positions_per_slice(self) -> list[int | tuple[int, ...]]:
        """For each mode, how many positions of the axis are in a slice of it."""
        if self.cells <= self.length:
            return [self.length // n for n in self.modes]
        counts: list[int | tuple[int, ...]] = []
        stride = self.cells
        for n in self.modes:
            # Slice j has `stride` positions of every run of n·stride positions; the
            # last run is cut short.
            runs, rest = divmod(self.length, stride)
            stride //= n
            counts.append(
                tuple(
                    runs * stride + min(max(rest - j * stride, 0), stride)
                    for j in range(n)
                )
            )
        return counts

    def __repr__(self) -> str:
        split = "×".join(map(str, self.modes))
        return split if self.cells <= self.length else f"({split} ≥ {self.length})"


@dataclasses.dataclass(frozen=True)
class TensorIndex:
    """How the entries of a variable are indexed by p modes.

    Extreme tensoring keeps one statistic for every slice of every mode, so the modes
    decide both the size of its state and how finely it can adapt.

    Make one with `TensorIndex.from_shape` (levels), `TensorIndex.from_sizes` (by
    hand), `TensorIndex.from_merged_axes` (Shampoo), `TensorIndex.with_one_mode`
    (Subset-Norm), `TensorIndex.of_matrices` (Adafactor) or `TensorIndex.of_entries`.

    Args:
        shape: Tuple of integers, the variable's shape.
        axes: Tuple of `Axis`. Their lengths multiply to the variable's size, in
            its row-major order. Where none of them has modes (a scalar, level
            `"inf"`) the whole variable is the only slice of a single mode.
        stack: How many tensors of these axes the variable stacks, one after the
            other in its row-major order. Each has its own slots. Defaults to 1.

    Example:

    >>> index = TensorIndex.from_shape((2000, 512), level=2)
    >>> index.modes
    (40, 50, 16, 32)
    >>> index.slots
    138
    >>> index
    TensorIndex((2000, 512) as 40×50×16×32, slots=138)

    Reference:
        Chen, Agarwal, Hazan, Zhang, Zhang, 2020, Extreme Tensoring for
        Low-Memory Preconditioning, arXiv:1902.04620, Section 4.
    """

    shape: tuple[int, ...]
    axes: tuple[Axis, ...]
    stack: int = 1

    @classmethod
    def from_shape(cls, shape: Sequence[int], level: Level) -> "TensorIndex":
        """The tensor index of a level.

        Level 1 takes the variable's own axes as modes. Every further level
        splits each factor n into the a·b = n with a ≤ b and a as large as a
        divisor up to √n can be. Where the size has no such divisors (50257,
        any prime), the axis is padded virtually: its factors then multiply to a
        little more than the axis.

        - An exact split stays unless its sum is over 1.1 × the smallest sum that
          a padded split into as many factors can reach.
        - An axis is split further only if that reduces its number of slices (5 is not
          split into 2×3), so that a higher level never keeps more. Axes of length 1 are
          no modes: their only slice is the whole tensor, which would only blur the
          others.

        Args:
            shape: The variable's shape: a sequence of integers ≥ 0, any rank.
            level: 1, 2, 3, … or `"inf"` (one slot for the whole variable).

        Returns:
            A `TensorIndex`.

        Raises:
            ValueError: if `level` is anything else.
        """
        check_level(level)
        shape = tuple(int(n) for n in shape)
        if math.prod(shape) == 0:
            return cls(shape, ())
        lengths = [n for n in shape if n > 1]
        if level == "inf":
            return cls(shape, tuple(Axis(n, ()) for n in lengths))
        axes = [_exact_or_padded(n, _factors(n, int(level))) for n in lengths]
        return cls(shape, tuple(itertools.chain.from_iterable(axes)))

    @classmethod
    def from_sizes(cls, shape: Sequence[int], sizes: Sizes) -> "TensorIndex":
        """The tensor index whose mode sizes are given by hand.

        Args:
            shape: The variable's shape.
            sizes: A list or tuple of positive integers that multiply to the variable's
                size: a reshape of it, whether or not it respects its axes.

        Returns:
            A `TensorIndex`.

        Raises:
            ValueError: if `sizes` are not positive integers, or multiply to anything
                else.
        """
        shape = tuple(int(n) for n in shape)
        sizes = check_sizes(sizes)
        size, cells = math.prod(shape), math.prod(sizes)
        if size == 0:
            return cls(shape, ())
        if size != cells or not sizes:
            raise ValueError(
                "The sizes of a tensor_index must multiply to the number of entries of "
                f"the variable; received sizes={sizes}, which multiply to {cells}, for "
                f"shape={shape}, which has {size}. Change a size, let the expression "
                "match fewer variables, or use level, which pads sizes that do not "
                "factor well."
            )
        return cls(shape, tuple(Axis(n, (n,)) for n in sizes))

    @classmethod
    def from_merged_axes(cls, shape: Sequence[int], level: Level) -> "TensorIndex":
        """The tensor index of a level, for a variable viewed as a matrix.

        Args:
            shape: The variable's shape. If it has more than two axes longer than 1, the
                first ones make up the rows of a matrix and the others its columns,
                split where rows + columns are fewest: (128, 4, 32) becomes
                (128, 128), (3, 3, 64, 128) becomes (576, 128).
            level: As in `from_shape`.

        Returns:
            A `TensorIndex`.

        Raises:
            ValueError: as `from_shape`.
        """
        own = cls.from_shape(shape, 1)
        if len(own.axes) <= 2:
            return cls.from_shape(shape, level)
        lengths = [axis.length for axis in own.axes]
        merged = math.prod(lengths[: own.cut]), math.prod(lengths[own.cut :])
        return cls(own.shape, cls.from_shape(merged, level).axes)

    @classmethod
    def with_one_mode(cls, shape: Sequence[int], axis: KeptAxis) -> "TensorIndex":
        """The tensor index with a slice for each position of one axis.

        Args:
            shape: The variable's shape.
            axis: Which axis; negative ones count from the last. `"auto"` views the
                variable as a matrix of its last axis by all others, and takes the
                shorter of the two (the last, if they are equal). A variable with at
                most one axis longer than 1 has a slice for each entry.

        Returns:
            A `TensorIndex`.

        Raises:
            ValueError: if the variable has no such axis.
        """
        shape = tuple(int(n) for n in shape)
        if math.prod(shape) == 0:
            return cls(shape, ())
        if sum(n > 1 for n in shape) < 2:
            return cls.from_shape(shape, 1)
        if axis == "auto":
            before, kept, after = math.prod(shape[:-1]), shape[-1], 1
            if before < kept:
                before, kept, after = 1, before, kept
        elif -len(shape) <= axis < len(shape):
            axis %= len(shape)
            before, kept = math.prod(shape[:axis]), shape[axis]
            after = math.prod(shape[axis + 1 :])
        else:
            raise ValueError(
                f"axis must be one of the {len(shape)} axes of a variable; received "
                f'axis={axis} for shape={shape}. Use "auto", or give an axis for each '
                "expression on paths, as in {'embeddings': 0, '.*': 'auto'}."
            )
        axes = [(before, ()), (kept, (kept,)), (after, ())]
        return cls(shape, tuple(Axis(n, modes) for n, modes in axes if n > 1))

    @classmethod
    def of_entries(cls, shape: Sequence[int]) -> "TensorIndex":
        """The tensor index with one mode of all entries of a variable of this shape."""
        shape = tuple(int(n) for n in shape)
        size = math.prod(shape)
        return cls(shape, (Axis(size, (size,)),) if size else ())

    @classmethod
    def of_matrices(cls, shape: Sequence[int]) -> "TensorIndex":
        """The tensor index with the rows and columns of every matrix.

        Args:
            shape: The variable's shape. Its last two axes are those of a matrix, and
                the others stack matrices.

        Returns:
            A `TensorIndex`. Matrices with one row or one column have a single mode.
        """
        shape = tuple(int(n) for n in shape)
        if math.prod(shape) == 0:
            return cls(shape, ())
        axes = tuple(Axis(n, (n,)) for n in shape[-2:] if n > 1)
        return cls(shape, axes, math.prod(shape[:-2]))

    @property
    def size(self) -> int:
        """The number of entries of the variable, d."""
        return math.prod(self.shape)

    @property
    def modes(self) -> tuple[int, ...]:
        """The mode sizes d₁ … d_p."""
        if self.size == 0:
            return ()
        return tuple(n for axis in self.axes for n in axis.modes) or (1,)

    @property
    def order(self) -> int:
        """The number of modes, p."""
        return len(self.modes)

    @property
    def slots(self) -> int:
        """The number of elements in all slots: d₁ + … + d_p for each stacked tensor."""
        return self.stack * sum(self.modes)

    @property
    def is_one_slice(self) -> bool:
        """Whether no axis has modes, so that one slice contains every entry."""
        return self.order == 1 and not any(axis.modes for axis in self.axes)

    @property
    def slot_shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shape of each mode's slot: a scalar where one slice contains all."""
        stack = (self.stack,) if self.stack > 1 else ()
        if self.is_one_slice:
            return (stack,)
        return tuple((*stack, n) for n in self.modes)

    @property
    def entries_per_slice(self) -> tuple[int | tuple[int, ...], ...]:
        """How many entries of the variable each slice contains.

        For each mode an integer if its slices are equally large; a tuple of one integer
        per slice if padding leaves some of them short.
        """
        size = self.size // self.stack
        counts = [
            count * (size // axis.length)
            if isinstance(count, int)
            else tuple(n * (size // axis.length) for n in count)
            for axis in self.axes
            for count in axis.positions_per_slice()
        ]
        return tuple(counts) or (size,) * self.order

    @property
    def cut(self) -> int:
        """Where to split the axes so that rows + columns of the matrix are fewest.

        The first `cut` axes together index the rows of a matrix that contains the
        variable in row-major order, the others its columns.
        """
        lengths = [axis.length for axis in self.axes]
        return min(
            range(len(lengths) + 1),
            key=lambda c: math.prod(lengths[:c]) + math.prod(lengths[c:]),
        )

    def cut_between_dimensions(self) -> tuple[int, int]:
        """As `cut`, but between two dimensions of the variable, or at an end.

        Returns:
            `(axes, dimensions)`: how many axes, and how many dimensions of a stacked
            tensor, come before it.
        """
        lengths = [axis.length for axis in self.axes]
        sizes = self.stacked_shape
        candidates = [
            (axes, dimensions)
            for axes in range(len(lengths) + 1)
            for dimensions in range(len(sizes) + 1)
            if math.prod(lengths[:axes]) == math.prod(sizes[:dimensions])
        ]
        return min(
            candidates,
            key=lambda c: math.prod(sizes[: c[1]]) + math.prod(sizes[c[1] :]),
        )

    @property
    def stacked_shape(self) -> tuple[int, ...]:
        """The shape of one of the stacked tensors; the variable's if there is one."""
        before = itertools.accumulate(self.shape, lambda a, b: a * b, initial=1)
        return self.shape[list(before).index(self.stack) :]

    def leading_axes(self) -> int | None:
        """How many axes make up the variable's first dimension exactly.

        `None` if an axis of the view crosses the end of the first dimension.
        """
        products = itertools.accumulate(
            (axis.length for axis in self.axes), lambda a, b: a * b, initial=1
        )
        for position, product in enumerate(products):
            if self.shape and product == self.shape[0]:
                return position
        return None

    def __repr__(self) -> str:
        split = "×".join(repr(a) for a in self.axes if a.modes) or "one slice"
        split = f"{self.stack} times {split}" if self.stack > 1 else split
        return f"TensorIndex({self.shape} as {split}, slots={self.slots})"


def matrix_shape(shape: Sequence[int]) -> tuple[int, int] | None:
    """The shape of a variable as a matrix.

    Args:
        shape: The variable's shape.

    Returns:
        `(rows, columns)`: with more than two axes longer than 1, the first ones make up
        the rows, split where rows + columns are fewest. `None` with fewer than two.
    """
    merged = TensorIndex.from_merged_axes(shape, 1).modes
    return merged if len(merged) == 2 else None


def matched(
    argument: str, given: ByPath[T], paths: Sequence[str], default: T
) -> list[T]:
    """The value of an argument for every variable.

    Args:
        argument: The argument's name.
        given: One value for all; or a mapping from regular expressions, searched for
            in a variable's path (the first match wins), to values.
        paths: The variables' paths.
        default: The value for variables that no expression matches.

    Returns:
        A list of values.

    Raises:
        ValueError: if an expression matches no path.
    """
    if not isinstance(given, Mapping):
        return [given] * len(paths)
    for pattern in given:
        if not any(re.search(pattern, path) for path in paths):
            raise ValueError(
                f"{argument} has an expression that matches no variable: "
                f"{pattern!r}. The paths of the variables are: {', '.join(paths)}."
            )
    return [
        next((v for pattern, v in given.items() if re.search(pattern, path)), default)
        for path in paths
    ]


def index_variables(
    named_shapes: NamedShapes,
    levels: Sequence[Level],
    overrides: TensorIndices = None,
    merge_axes: bool = False,
) -> list[TensorIndex]:
    """The tensor index of every variable of a model.

    Args:
        named_shapes: A sequence of `(path, shape)`, one per variable.
        levels: The level of every variable that no override names.
        overrides: `None`; or a mapping from a regular expression, searched for in
            the path (the first match wins), to mode sizes; or a callable
            `(path, shape) -> sizes or None`.
        merge_axes: Whether variables that no override names are viewed as matrices, as
            in `TensorIndex.from_merged_axes`.

    Returns:
        A list of `TensorIndex` in the same order.

    Raises:
        ValueError: if an expression matches no path, or sizes do not fit.
    """
    from_level = TensorIndex.from_merged_axes if merge_axes else TensorIndex.from_shape
    if callable(overrides):
        by_hand = [overrides(path, shape) for path, shape in named_shapes]
    else:
        paths = [path for path, _ in named_shapes]
        by_hand = matched("tensor_index", overrides, paths, default=None)

    def index(shape: Shape, level: Level, sizes: Sizes | None) -> TensorIndex:
        if sizes is None:
            return from_level(shape, level)
        return TensorIndex.from_sizes(shape, sizes)

    return _of_each("tensor_index", named_shapes, index, levels, by_hand)


def index_one_mode(
    named_shapes: NamedShapes, axes: Sequence[KeptAxis]
) -> list[TensorIndex]:
    """The tensor index with one mode of every variable of a model.

    Args:
        named_shapes: A sequence of `(path, shape)`, one per variable.
        axes: The axis of every variable, as in `TensorIndex.with_one_mode`.

    Returns:
        A list of `TensorIndex` in the same order.

    Raises:
        ValueError: if a variable lacks its axis.
    """
    return _of_each("axis", named_shapes, TensorIndex.with_one_mode, axes)


def _of_each(
    argument: str,
    named_shapes: NamedShapes,
    index: Callable[..., TensorIndex],
    *values: Sequence[Any],
) -> list[TensorIndex]:
    """The index of each variable; an error names the argument and the variable."""
    found = []
    for (path, shape), *own in zip(named_shapes, *values):
        try:
            found.append(index(shape, *own))
        except ValueError as error:
            raise ValueError(f"{argument} for variable {path!r}: {error}") from None
    return found


def check_levels(level: Any) -> None:
    """Raises `ValueError` unless `level` is a level, or a dict from paths to them."""
    for own in values_by_path("level", level):
        check_level(own)


def values_by_path(argument: str, given: Any) -> list[Any]:
    """The values of an argument that may be a dict from expressions to values.

    Raises:
        ValueError: if a key of the dict is not a valid regular expression.
    """
    if not isinstance(given, Mapping):
        return [given]
    check_expressions(argument, given)
    return list(given.values())


def check_level(level: Any) -> None:
    """Raises `ValueError` unless `level` is 1, 2, 3, … or `"inf"`."""
    is_count = checks.is_integer(level) and level >= 1
    if not is_count and not (isinstance(level, str) and level == "inf"):
        raise ValueError(
            f'level must be 1, 2, 3, … or "inf"; received level={level!r}. '
            'Use level=1 for one mode per axis, a higher level or "inf" for less '
            "memory."
        )


def check_sizes(sizes: Any) -> tuple[int, ...]:
    """Returns `sizes` as a tuple; raises unless they are positive integers."""
    if isinstance(sizes, (list, tuple)) and all(
        checks.is_integer(n) and n >= 1 for n in sizes
    ):
        return tuple(int(n) for n in sizes)
    raise ValueError(
        "The sizes of a tensor_index must be a tuple of positive integers; "
        f"received {sizes!r}. Give one size per mode, such as (40, 50, 16, 32)."
    )


def check_overrides(overrides: Any) -> None:
    """Raises `ValueError` unless `overrides` can be a `tensor_index` argument."""
    if overrides is None or callable(overrides):
        return
    if not isinstance(overrides, Mapping):
        raise ValueError(
            "tensor_index must be None, a dict from regular expressions on "
            "variable paths to tuples of sizes, or a callable (path, shape) -> "
            f"sizes or None; received tensor_index={overrides!r}."
        )
    check_expressions("tensor_index", overrides)
    for sizes in overrides.values():
        check_sizes(sizes)


def check_axis(axis: Any) -> None:
    """Raises `ValueError` unless `axis` can be the argument of Subset-Norm."""
    for given in values_by_path("axis", axis):
        is_auto = isinstance(given, str) and given == "auto"
        if not checks.is_integer(given) and not is_auto:
            raise ValueError(
                'axis must be an integer, "auto", or a dict from regular expressions '
                f'on variable paths to either; received axis={axis!r}. Use "auto" for '
                "the paper's choice."
            )


def check_expressions(argument: str, overrides: Mapping[Any, Any]) -> None:
    """Raises `ValueError` unless the keys of `overrides` are regular expressions."""
    for pattern in overrides:
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            raise ValueError(
                f"Every key of {argument} must be a regular expression; received "
                f"{pattern!r} ({error}). Escape special characters, as re.escape "
                "does."
            ) from None


def _factors(n: int, level: int) -> tuple[int, ...]:
    """The modes of an axis of length n ≥ 2 at a level: exact, padded, or n itself."""
    found: tuple[int, ...] = (n,)
    for finer in range(2, min(level, LAST_LEVEL) + 1):
        exact, padded = _exact_factors(n, finer), _padded_factors(n, 2 ** (finer - 1))
        fits = sum(exact) <= EXACT_SPLIT_TOLERANCE * sum(padded)
        split = exact if fits else padded
        if sum(split) < sum(found):
            found = split
    return found


def _exact_factors(n: int, level: int) -> tuple[int, ...]:
    """The near-square divisor split, made `level - 1` times; factors of 1 left out."""
    factors: tuple[int, ...] = (n,)
    for _ in range(level - 1):
        halves = [half for f in factors for half in _near_square(f)]
        finer = tuple(f for f in halves if f > 1)
        if finer == factors:
            break
        factors = finer
    return factors


def _near_square(n: int) -> tuple[int, int]:
    """(a, b) with a·b = n and a the largest divisor of n up to √n."""
    a = next(a for a in range(math.isqrt(n), 0, -1) if n % a == 0)
    return a, n // a


def _padded_factors(n: int, most: int) -> tuple[int, ...]:
    """At most `most` factors of product ≥ n whose sum is as small as can be."""
    # With more than log2(n) factors some would be 1.
    counts = range(1, min(most, (n - 1).bit_length()) + 1)
    return min((_near_equal_factors(n, count) for count in counts), key=sum)


def _near_equal_factors(n: int, count: int) -> tuple[int, ...]:
    """`count` factors of product ≥ n whose sum is as small as can be.

    Among factors of a given sum the product is largest when they differ by at
    most 1, so the smallest sum whose equal parts reach n is the smallest of all.
    """

    def equal_parts(total: int) -> tuple[int, ...]:
        quotient, rest = divmod(total, count)
        return (quotient,) * (count - rest) + (quotient + 1,) * rest

    # Equal parts of the real-valued root cannot reach n with a smaller total.
    total = max(count, int(count * n ** (1 / count) * (1 - 1e-9)))
    while math.prod(equal_parts(total)) < n:
        total += 1
    return equal_parts(total)


def _exact_or_padded(length: int, modes: tuple[int, ...]) -> list[Axis]:
    """Exact modes become an axis each; padded ones share one."""
    if math.prod(modes) == length:
        return [Axis(n, (n,)) for n in modes]
    return [Axis(length, modes)]
