"""The rank-one estimate of second moments from their means over slices.

With M_i[j] the mean over slice j of mode i and m the mean over all entries, the second
moment of entry I is estimated as

    v̂[I] = m · Π_i (M_i[I_i] / m)

which is exact where the second moments are an outer product over the modes. It is the
closest non-negative outer product to them in generalised Kullback-Leibler divergence
(Huang, Sidiropoulos, 2017, arXiv:1711.07925; Ghalamkari, Sugiyama, 2021,
arXiv:2103.02898). With two modes it equals Adafactor's estimate (Shazeer, Stern, 2018,
arXiv:1804.04235).
"""

from keras import ops

from et_optimizer import checks


def ratios(means, average):
    """One vector per mode, whose product at an entry is v̂.

    Args:
        means, average: As for `inverse_roots`.

    Returns:
        A list of tensors of the shapes of `means`.
    """
    average = ops.maximum(average, checks.SMALLEST_FLOAT32)
    # The last mode carries the scale; all others are relative to the mean.
    return [*(mean / average for mean in means[:-1]), means[-1]]


def inverse_roots(means, average):
    """One vector per mode, whose product at an entry is v̂^(−1/2).

    Args:
        means: A list of tensors of shape (slices,) or (stack, slices), one per mode.
        average: A tensor that broadcasts with all of them, m.

    Returns:
        A list of tensors of the shapes of `means`. Roots are taken before anything is
        multiplied, because M / m overflows float32 easily. A slice of zeros has a
        finite root: its gradients are 0, whatever they are multiplied by.
    """
    least = checks.SMALLEST_FLOAT32
    roots = [ops.rsqrt(ops.maximum(mean, least)) for mean in means]
    if len(roots) == 1:
        return roots
    scale = ops.sqrt(average)
    return [*(root * scale for root in roots[:-1]), roots[-1]]
