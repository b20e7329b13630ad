"""The tensor index: the paper's levels, padding, hand-written sizes, errors."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from et_optimizer import ExtremeTensoring, TensorIndex
from et_optimizer.views.tensor_index import (
    Axis,
    check_levels,
    index_variables,
    matched,
    matrix_shape,
)

pytestmark = pytest.mark.one_backend


@pytest.mark.parametrize(
    ("shape", "level", "modes"),
    [
        ((2000, 512), 1, (2000, 512)),
        ((2000, 512), 2, (40, 50, 16, 32)),
        ((2000, 512), 3, (5, 8, 5, 10, 4, 4, 4, 8)),
        ((2048,), 2, (32, 64)),
        ((2048,), 3, (4, 8, 8, 8)),
        ((512,), 3, (4, 4, 4, 8)),
        ((2000, 512), "inf", (1,)),
        ((50257,), 2, (224, 225)),
        ((), 2, (1,)),
        ((1, 1), 1, (1,)),
        ((1, 512), 1, (512,)),
        ((3,), 2, (3,)),
        ((0, 4), 2, ()),
    ],
)
def test_levels_split_the_axes_as_in_the_paper(shape, level, modes):
    index = TensorIndex.from_shape(shape, level)
    assert index.modes == modes
    assert index.slots == sum(modes)


def smallest_padded_sum(n, count):
    """The minimum over all non-decreasing factors, by exhaustive search."""

    def best(remaining, factors_left, least):
        if factors_left == 1:
            return max(least, remaining)
        return min(
            first + best(-(-remaining // first), factors_left - 1, first)
            for first in range(1, math.ceil(remaining ** (1 / factors_left)) + 2)
        )

    return best(n, count, 1)


@pytest.mark.parametrize("count_and_level", [(2, 2), (4, 3)])
@given(n=st.integers(2, 60_000))
def test_a_split_has_at_most_ten_percent_more_slots_than_the_best_one(
    count_and_level, n
):
    count, level = count_and_level
    if count == 4:
        n = 2 + n % 3000
    modes = TensorIndex.from_shape((n,), level).modes
    assert math.prod(modes) >= n
    assert sum(modes) <= 1.1 * smallest_padded_sum(n, count)


@pytest.mark.parametrize("size", [50257, 32003, 30522, 7919, 999_983])
def test_sizes_without_good_divisors_are_padded(size):
    index = TensorIndex.from_shape((size, 64), 2)
    assert math.prod(index.modes) > size * 64
    assert index.slots < 2.01 * math.sqrt(size) + 16 + 2


@given(
    shape=st.lists(st.integers(1, 9), max_size=8),
    level=st.sampled_from([1, 2, 3, 4, "inf"]),
)
def test_the_slices_of_each_mode_partition_the_entries(shape, level):
    index = TensorIndex.from_shape(shape, level)
    assert math.prod(axis.length for axis in index.axes) == math.prod(shape)
    assert index.slots <= max(1, sum(n for n in shape if n > 1))
    for size, entries in zip(index.modes, index.entries_per_slice):
        entries = [entries] * size if isinstance(entries, int) else entries
        assert len(entries) == size and sum(entries) == index.size


@given(
    length=st.integers(1, 40),
    modes=st.lists(st.integers(1, 7), min_size=1, max_size=3),
)
def test_entries_per_slice_counts_the_entries_of_padded_modes(length, modes):
    if math.prod(modes) < length:
        length = math.prod(modes)
    index = TensorIndex((length,), (Axis(length, tuple(modes)),))
    cells = list(itertools.product(*map(range, modes)))[:length]
    for mode, entries in enumerate(index.entries_per_slice):
        counted = np.bincount([c[mode] for c in cells], minlength=modes[mode])
        expected = [entries] * modes[mode] if isinstance(entries, int) else entries
        assert list(counted) == list(expected)


@given(n=st.integers(1, 5000))
def test_a_higher_level_never_has_more_slots(n):
    slots = [TensorIndex.from_shape((n,), level).slots for level in range(1, 9)]
    assert slots == sorted(slots, reverse=True)
    assert slots[-1] >= TensorIndex.from_shape((n,), "inf").slots == 1


def test_numpy_integers_are_accepted_as_shape_level_and_sizes():
    index = TensorIndex.from_shape((np.int64(8), np.int32(3)), np.int64(2))
    assert index.modes == (2, 4, 3)
    assert TensorIndex.from_sizes((8, 3), (np.int64(4), 6)).modes == (4, 6)


@pytest.mark.parametrize("level", [7, 40, 10**6])
def test_levels_that_split_off_every_prime_factor_are_equal(level):
    assert (
        TensorIndex.from_shape((512, 97), level).modes
        == TensorIndex.from_shape((512, 97), level + 1).modes
    )


def test_repr_names_shape_modes_and_slots():
    assert (
        repr(TensorIndex.from_shape((50257, 512), 2))
        == "TensorIndex((50257, 512) as (224×225 ≥ 50257)×16×32, slots=497)"
    )
    assert (
        repr(TensorIndex.from_shape((7, 5), "inf"))
        == "TensorIndex((7, 5) as one slice, slots=1)"
    )


@pytest.mark.parametrize("level", [0, -1, 1.5, 2.0, "2", "INF", None, True])
def test_an_invalid_level_is_refused_with_the_rule_and_a_remedy(level):
    with pytest.raises(ValueError, match=r'1, 2, 3, … or "inf"; received level='):
        TensorIndex.from_shape((4, 4), level)


def test_hand_written_sizes_may_cut_across_axes():
    index = TensorIndex.from_sizes((2000, 512), (1000, 1024))
    assert index.modes == (1000, 1024) and index.leading_axes() is None


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((3, 5), "multiply to 15, .*which has 16"),
        ((), "multiply to 1, .*which has 16"),
        ((3, 6), "multiply to 18, .*which has 16.*use level, which pads"),
        ((10**12,), "multiply to 1000000000000"),
        ((4.0, 4), "tuple of positive integers"),
        ((0, 16), "tuple of positive integers"),
        ("44", "tuple of positive integers"),
        (16, "tuple of positive integers"),
        ((True, 16), "tuple of positive integers"),
    ],
)
def test_hand_written_sizes_whose_product_is_not_the_size_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        TensorIndex.from_sizes((4, 4), sizes)


SHAPES = [("a/kernel", (4, 6)), ("a/bias", (6,)), ("b/kernel", (6, 2))]


def test_the_first_matching_expression_gives_sizes_and_the_level_the_others():
    indices = index_variables(SHAPES, [1] * 3, {"^a/k": (24,), "kernel$": (3, 4)})
    assert [index.modes for index in indices] == [(24,), (6,), (3, 4)]


def test_a_callable_gives_sizes_or_none_for_the_level():
    indices = index_variables(
        SHAPES,
        [1] * 3,
        lambda path, shape: (math.prod(shape),) if "kernel" in path else None,
    )
    assert [index.modes for index in indices] == [(24,), (6,), (12,)]


def planned_modes(**arguments):
    """The modes that an optimizer gives to variables of these paths and shapes."""
    optimizer = ExtremeTensoring(**arguments)
    return [index.modes for index in optimizer.index_variables(SHAPES)]


def test_levels_by_path_leave_other_variables_at_level_1():
    by_path = {"^a/": 2, "kernel$": "inf"}
    assert planned_modes(level=by_path) == [(4, 2, 3), (2, 3), (1,)]
    assert planned_modes(level={"^b/": 3}) == [(4, 6), (6,), (2, 3, 2)]


def test_hand_written_sizes_take_precedence_over_a_level_by_path():
    indices = index_variables(SHAPES, ["inf", 1, "inf"], {"^a/k": (24,)})
    assert [index.modes for index in indices] == [(24,), (6,), (1,)]


def test_a_level_by_path_applies_to_merged_axes():
    named = [("queries", (16, 4, 4)), ("keys", (16, 4, 4))]
    indices = index_variables(named, [2, 1], merge_axes=True)
    assert [index.modes for index in indices] == [(4, 4, 4, 4), (16, 16)]


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ({"kernel": 0}, "level must be 1, 2, 3, .*received level=0"),
        ({"kernel": 1, "bias": None}, "received level=None"),
        ({"(kernel": 1}, r"Every key of level must be a regular.*'\(kernel'"),
        ({3: 1}, "Every key of level must be a regular expression; received 3"),
        ([1, 2], r"received level=\[1, 2\]"),
    ],
)
def test_an_invalid_level_or_expression_by_path_is_refused(levels, message):
    with pytest.raises(ValueError, match=message):
        check_levels(levels)


def test_a_level_whose_expression_matches_no_variable_is_refused_with_the_paths():
    with pytest.raises(ValueError, match="level .*'embed'.*a/kernel, a/bias, b/kernel"):
        planned_modes(level={"embed": 2})


PATHS = [path for path, _ in SHAPES]


@pytest.mark.parametrize("given", ["auto", None, 3, 0])
def test_a_single_value_applies_to_every_path(given):
    assert matched("rank", given, PATHS, default="other") == [given] * 3


def test_values_by_path_take_the_first_match_and_otherwise_the_default():
    found = matched("rank", {"a/k": None, "^a": 0}, PATHS, default="auto")
    assert found == [None, 0, "auto"]
    assert matched("rank", {}, PATHS, default=1) == [1, 1, 1]
    with pytest.raises(ValueError, match="rank has an expression .*variable: 'c'"):
        matched("rank", {"a": 1, "c": 2}, PATHS, default=1)


@pytest.mark.parametrize(
    ("shape", "matrix"),
    [
        ((6, 8), (6, 8)),
        ((1, 6, 1, 8), (6, 8)),
        ((3, 3, 64, 128), (3 * 3 * 64, 128)),
        ((64, 4, 16), (64, 4 * 16)),
        ((4, 16, 64), (4 * 16, 64)),
        ((2, 2, 2), (2, 4)),
        ((0, 8), None),
        ((1, 8), None),
        ((8,), None),
        ((1, 1), None),
        ((), None),
    ],
)
def test_variables_with_two_or_more_axes_are_viewed_as_a_matrix(shape, matrix):
    assert matrix_shape(shape) == matrix


@given(shape=st.lists(st.integers(1, 9), max_size=5))
def test_the_matrix_view_has_the_fewest_rows_plus_columns_of_all_reshapes(shape):
    matrix = matrix_shape(shape)
    if sum(n > 1 for n in shape) < 2:
        assert matrix is None
        return
    cuts = [(math.prod(shape[:c]), math.prod(shape[c:])) for c in range(len(shape) + 1)]
    assert matrix in cuts and min(matrix) > 1
    assert sum(matrix) == min(sum(cut) for cut in cuts if min(cut) > 1)


def test_sizes_whose_expression_matches_no_variable_are_refused_with_the_paths():
    with pytest.raises(ValueError, match="'embed'.*a/kernel, a/bias, b/kernel"):
        index_variables(SHAPES, [1] * 3, {"embed": (24,)})


def test_sizes_that_do_not_fit_a_variable_are_refused_with_its_path():
    with pytest.raises(ValueError, match="'b/kernel'.*multiply to 4.*which has 12"):
        index_variables(SHAPES, [1] * 3, {"b/kernel": (2, 2)})


@pytest.mark.parametrize("level", [1, 2, 3, "inf"])
@pytest.mark.parametrize(
    ("shape", "before"),
    [
        ((1000, 64), (1000,)),
        ((4004, 64), (4004,)),
        ((64, 4, 16), (64,)),
        ((4, 16, 64), (4, 16)),
        ((3, 3, 8, 512), (3, 3, 8)),
        ((50257, 768), (50257,)),
    ],
)
def test_the_cut_between_dimensions_balances_their_sizes(shape, before, level):
    index = TensorIndex.from_shape(shape, level)
    axes, dimensions = index.cut_between_dimensions()
    assert shape[:dimensions] == before
    assert math.prod(axis.length for axis in index.axes[:axes]) == math.prod(before)


def test_an_index_across_dimensions_is_cut_only_at_an_end():
    index = TensorIndex.from_sizes((12, 6), (9, 8))
    assert index.cut_between_dimensions() in {(0, 0), (len(index.axes), 2)}


def test_stacked_shape_is_the_matrix_of_a_stack_and_otherwise_the_shape():
    assert TensorIndex.from_shape((5, 4, 3), 1).stacked_shape == (5, 4, 3)
    assert TensorIndex.of_matrices((5, 4, 3)).stacked_shape == (4, 3)
    assert TensorIndex.of_matrices((1, 2, 5, 4, 3)).stacked_shape == (4, 3)
