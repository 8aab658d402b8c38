"""Every tolerance of the suite, derived from the dtype and the length of the sums.

The model. A floating-point operation has an error of up to eps/2 of its result, in an effectively
random direction, so n roundings in a row add up to about sqrt(n) of them (Higham and Mary, A New
Approach to Probabilistic Rounding Error Analysis, 2019). Inputs, weights and incoming gradients of
the tests are at most 1 in size, so partial sums are of order 1. An error is measured against the
array's largest element or 1, whichever is larger: a small element of a gradient is a difference of
large ones and, measured against itself, has no digits to lose.

One step of one layer is a sum of `terms` products and a few functions accurate to some ulp. Each of
the `steps` of a value, in time and in depth, adds such an error and passes on earlier ones almost
unchanged: weights are uniform in +-1/sqrt(H), so that the step's Jacobian neither shrinks nor
stretches much.

The bounds have no other factor. At worst the suite reaches a third of `network`; a mistake in a
formula exceeds it by far (`test_a_wrong_weight_exceeds_the_tolerance`).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

FUNCTION_ULPS = 4.0  # tanh, exp and a few products behind each sum


def eps(dtype: DTypeLike) -> float:
    return float(np.finfo(dtype).eps)


def network(dtype: DTypeLike, *, terms: int, steps: int) -> float:
    """Error of outputs, states and gradients: sums of `terms` products, `steps` in a row."""
    return eps(dtype) * (math.sqrt(terms) + FUNCTION_ULPS) * math.sqrt(1 + steps)


# How much normalizing enlarges the errors of rows that dropout has left nearly constant: it divides
# by their small deviation.
NEARLY_CONSTANT = 3

# compute_dtype="bfloat16". Two ways to compute the same round their operands alike, but for a value
# that lies in the middle between two numbers of 8 bits, up to its own error: it may become one in
# the one way and the other in the other, 2^-7 of it apart. An error of 2 eps, of a spacing of 2^-8
# of 1, makes that the fate of one value in 10,000; a case of the tests rounds some thousand. What
# comes after it differs by more than float32's errors. But of so many draws one is without:
DRAWS_OF_ROUNDED = 8


def row_sums(dtype: DTypeLike) -> float:
    """Error of a sum over any number of rows: that of a block of 256 rows, of whatever sign."""
    return eps(dtype) / 2 * math.sqrt(256)


# What is promised of a gradient of one sign over four million rows in float32: the error of the sum
# and of what is summed.
OF_ONE_SIGN = 1e-6


def chains(dtype: DTypeLike) -> float:
    """Error of an output, root mean square: that of a chain of 128 products, of any hidden size.

    Terms are as often below as above 0: a partial sum is smaller than the whole, by the root of its
    share, and its roundings with it, which leaves 1 / sqrt(2) of the error of roundings at the end.
    """
    return eps(dtype) / math.sqrt(12) * math.sqrt(128 / 2)


def shared_out(dtype: DTypeLike, *, terms: int, steps: int, updates: int) -> float:
    """Error of weights, losses and norms after `updates` whose gradients, sums of `terms` products,
    were added up in another order. SGD of a rate below 1 passes errors on unchanged.
    """
    return network(dtype, terms=terms, steps=steps) * math.sqrt(1 + updates)


def of_adam(error: float, *, learning_rate: float, eps: float) -> float:
    """Error of an update of Adam by gradients with this error: for the smallest ones the step is
    lr m / eps.
    """
    return learning_rate * error / eps


def elementwise(dtype: DTypeLike, *, operations: int) -> float:
    """Error of a chain of `operations` on single elements (an optimizer's updates)."""
    return eps(dtype) * math.sqrt(1 + operations)


def losses(dtype: DTypeLike, *, classes: int, rows: int, largest: float) -> float:
    """Error of a cross-entropy per row, and of its gradient.

    e^x carries the rounding of the logit x, which is at most `largest` in size, as that many eps.
    Rows are summed in float64; alike, they err in one direction: their number itself counts.
    """
    row = eps(dtype) * (math.sqrt(classes) + FUNCTION_ULPS + largest)
    return row + eps("float64") * rows / 2


def finite_difference(dtype: DTypeLike) -> float:
    """Error of a central difference (f(p + h) - f(p - h)) / 2h at `finite_difference_step`.

    Rounding leaves eps |f| / h, truncation h^2 |f'''| / 6: with f of 30 nats, as in the tests, they
    are about equal at h = cbrt(eps), and then both are some 30 eps^(2/3): 1e-9 in float64.
    """
    return 30 * math.pow(eps(dtype), 2 / 3)


def finite_difference_step(dtype: DTypeLike) -> float:
    return float(np.cbrt(eps(dtype)))


def error(actual: Any, expected: Any) -> float:
    """The largest difference, relative to the largest element expected (or 1); inf for any NaN."""
    a, e = np.asarray(actual, "float64"), np.asarray(expected, "float64")
    if a.shape != e.shape:
        raise ValueError(f"shapes differ: {a.shape} and {e.shape}")
    if not a.size:
        return 0.0
    difference = np.abs(a - e).max() / max(1.0, np.abs(e).max())
    return float(difference) if np.isfinite(difference) else float("inf")


def assert_close(name: str, actual: Any, expected: Any, tolerance: float) -> None:
    found = error(actual, expected)
    assert found <= tolerance, f"{name} is off by {found:.3g}, allowed is {tolerance:.3g}"


def assert_same_bits(name: str, actual: NDArray[Any], expected: NDArray[Any]) -> None:
    assert actual.dtype == expected.dtype, f"{name}: {actual.dtype} and {expected.dtype}"
    assert actual.shape == expected.shape, f"{name}: {actual.shape} and {expected.shape}"
    same = actual.tobytes() == expected.tobytes()
    assert same, f"{name}: {(actual != expected).sum()} of {actual.size} elements differ"
