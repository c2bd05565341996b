"""What numba compiles: one kernel that goes through a table of layers, with the weights as an argument.

So it is compiled once for all networks, a publish compiles nothing, and a call passes three arrays. A multiply and an
add may be fused, nothing else of the arithmetic is relaxed: what is not a number stays so.

A row of the table is ``(kind, rows, source, stride, inputs, target, width, at, aside)``: from ``work[source:]``, rows
of numbers `stride` apart, to ``work[target:]``, rows `width` apart. What the layer needs begins at ``weights[at]``, and
``work[aside:]`` is room for quantised inputs. Widths of dense layers are whole vectors of the processor (`WIDE`); what
is beyond a layer's size comes from zeros and is not read. Places are unsigned, or each would be asked whether it counts
from the end; and what goes through long rows is a function of its own, for only of different arguments does the
compiler believe that they do not overlap. `_bytes` has what multiplies eight bits as such.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np

from shoal.core import compilation
from shoal.formulas import normalise

WIDE = 16  # numbers
# The kinds, and what lies at `at`, f32:
DENSE = 0  # kernel [inputs, width], bias [width]
DYNAMIC = 1  # kernel as whole numbers, bias, step [width]
STATIC = 2  # the same, then low and high
NORMALISE = 3  # mean [inputs], deviation [inputs]
SCALE = 4  # what is subtracted [inputs], what is divided by [inputs]
TANH, RELU, SOFTPLUS, ELU = 5, 6, 7, 10  # nothing; 8 and 9 are of `_bytes`
SIMPLE = {  # by kind of layer
    "normalise": NORMALISE, "scale": SCALE, "tanh": TANH, "relu": RELU, "softplus": SOFTPLUS, "elu": ELU
}  # fmt: skip
COLUMNS = 9

# tanh x = x P(x^2) / Q(x^2) for |x| < 9, fitted for the least greatest error; in f32 it is off by less than 4e-7, and
# it is 1 beyond.
_P0, _P1, _P2, _P3, _P4 = map(np.float32, (0.99999991, 0.13373196, 3.4865802e-3, 2.0471802e-5, 1.3184185e-8))
_Q1, _Q2, _Q3, _Q4 = map(np.float32, (0.46706493, 2.5841973e-2, 3.2713826e-4, 7.7026475e-7))
_MOST, _ZERO, _ONE, _STEPS, _LEAST = map(np.float32, (9.0, 0.0, 1.0, 255.0, 1e-30))
_NONE, _NEXT, _EIGHT = map(np.uint64, (0, 1, 8))
_CLIP = np.float32(normalise.CLIP)
_ROUND = np.float32(1.5 * 2**23)  # added and taken away again, it leaves the nearest whole number, ties to even


def _written() -> str:
    """Size and time of the files that are compiled: numba itself looks at the one file of a function alone."""
    files = (Path(__file__).with_name(name).stat() for name in ("_kernels.py", "_bytes.py"))
    return "-".join(f"{file.st_size:x}-{file.st_mtime_ns:x}" for file in files)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Kept beside what XLA compiled, or not at all where nothing can be written."""
    settings: dict[str, Any] = {"fastmath": {"contract"}, "error_model": "numpy"}
    config: Any = numba.config
    before, config.CACHE_DIR = config.CACHE_DIR, str(compilation.folder() / "numba" / _written())
    try:
        return numba.njit(**settings, cache=True)(function)
    except RuntimeError:  # numba found no place
        return numba.njit(**settings)(function)
    finally:
        config.CACHE_DIR = before


@compiled
def run(table: np.ndarray, weights: np.ndarray, work: np.ndarray) -> None:
    """One call of a network.

    Args:
        table: ``[layers, COLUMNS]`` u64.
        weights: f32.
        work: f32, observations first.
    """
    for k in range(len(table)):
        layer(table[k], weights, work)


@compiled
def layer(row: np.ndarray, weights: np.ndarray, work: np.ndarray) -> None:
    """One row of the table."""
    kind, rows, source, stride, inputs, target, width, at, aside = row
    x, y, w = work[source : source + rows * stride], work[target : target + rows * width], weights[at:]
    if kind == DENSE:
        _spread(w[inputs * width :], y, rows, width)
        _multiply(x, stride, w, y, rows, inputs, width)
    elif kind in (DYNAMIC, STATIC):
        whole = work[aside : aside + rows * inputs]
        unit = _quantise(x, stride, w[inputs * width + width + width :], whole, rows, inputs, kind == STATIC)
        y[:] = _ZERO
        _multiply(whole, inputs, w, y, rows, inputs, width)
        _unquantise(w[inputs * width :], y, rows, width, unit)
    elif kind in (NORMALISE, SCALE):
        _shift(x, stride, w, y, rows, inputs, width, kind == NORMALISE)
    elif kind == TANH:
        _tanhs(x, y)
    elif kind == RELU:
        for j in range(len(y)):
            y[j] = _ZERO if x[j] <= _ZERO else x[j]  # not a number: stays
    elif kind == ELU:
        for j in range(len(y)):
            y[j] = math.expm1(x[j]) if x[j] < _ZERO else x[j]
    else:
        for j in range(len(y)):
            y[j] = (x[j] if x[j] > _ZERO else _ZERO) + math.log1p(math.exp(-abs(x[j])))


@compiled
def _tanh(x: Any) -> Any:
    x = _MOST if x > _MOST else x
    x = -_MOST if x < -_MOST else x
    s = x * x
    top = x * ((((_P4 * s + _P3) * s + _P2) * s + _P1) * s + _P0)
    y = top / ((((_Q4 * s + _Q3) * s + _Q2) * s + _Q1) * s + _ONE)
    y = _ONE if y > _ONE else y
    return -_ONE if y < -_ONE else y


@compiled
def _tanhs(x: np.ndarray, y: np.ndarray) -> None:
    for j in range(len(y)):
        y[j] = _tanh(x[j])


@compiled
def _spread(bias: np.ndarray, y: np.ndarray, rows: Any, width: Any) -> None:
    for r in range(rows):
        for j in range(width):
            y[r * width + j] = bias[j]


@compiled
def _multiply(x: np.ndarray, stride: Any, w: np.ndarray, y: np.ndarray, rows: Any, inputs: Any, width: Any) -> None:
    """Adds ``x @ w``, eight inputs at a time, so that sums are read and written an eighth as often."""
    i, eights = _NONE, inputs // _EIGHT * _EIGHT
    while i < eights:
        k0 = i * width
        k1 = k0 + width
        k2 = k1 + width
        k3 = k2 + width
        k4 = k3 + width
        k5 = k4 + width
        k6 = k5 + width
        k7 = k6 + width
        for r in range(rows):
            to, given = r * width, x[r * stride + i : r * stride + i + _EIGHT]
            x0, x1, x2, x3, x4, x5, x6, x7 = (
                given[0], given[1], given[2], given[3], given[4], given[5], given[6], given[7]
            )  # fmt: skip
            for j in range(width):
                one = (x0 * w[k0 + j] + x1 * w[k1 + j]) + (x2 * w[k2 + j] + x3 * w[k3 + j])
                other = (x4 * w[k4 + j] + x5 * w[k5 + j]) + (x6 * w[k6 + j] + x7 * w[k7 + j])
                y[to + j] += one + other
        i += _EIGHT
    while i < inputs:
        for r in range(rows):
            to, x0, k0 = r * width, x[r * stride + i], i * width
            for j in range(width):
                y[to + j] += x0 * w[k0 + j]
        i += _NEXT


@compiled
def step_of(x: np.ndarray, stride: Any, held: np.ndarray, rows: Any, inputs: Any, static: bool) -> Any:
    """See `in_jax.quantised`: (step, zero point); `held` begins with low and high where they are static."""
    low, high = _ZERO, _ZERO
    if static:
        low, high = held[0], held[1]
    else:
        finite = _ZERO
        for r in range(rows):
            given = x[r * stride : r * stride + inputs]
            for i in range(inputs):
                low = given[i] if given[i] < low else low
                high = given[i] if given[i] > high else high
                finite += given[i] - given[i]
        high += finite  # what is not finite makes everything not a number
    unit = (high - low) / _STEPS
    unit = _LEAST if unit < _LEAST else unit
    return unit, (-low / unit + _ROUND) - _ROUND


@compiled
def in_steps(number: Any, unit: Any, zero: Any) -> Any:
    """Within 0 and 255, as f32."""
    whole = ((number / unit + _ROUND) - _ROUND) + zero
    whole = _ZERO if whole < _ZERO else whole
    return _STEPS if whole > _STEPS else whole


@compiled
def _quantise(
    x: np.ndarray, stride: Any, held: np.ndarray, whole: np.ndarray, rows: Any, inputs: Any, static: bool
) -> Any:
    """Whole numbers from the zero point; their step is returned."""
    unit, zero = step_of(x, stride, held, rows, inputs, static)
    for r in range(rows):
        given, to = x[r * stride : r * stride + inputs], whole[r * inputs : r * inputs + inputs]
        for i in range(inputs):
            to[i] = in_steps(given[i], unit, zero) - zero
    return unit


@compiled
def _unquantise(w: np.ndarray, y: np.ndarray, rows: Any, width: Any, unit: Any) -> None:
    """`w` begins with the bias and the steps of the weights."""
    bias, step = w[:width], w[width : width + width]
    for r in range(rows):
        to = y[r * width : r * width + width]
        for j in range(width):
            to[j] = to[j] * (unit * step[j]) + bias[j]


@compiled
def _shift(
    x: np.ndarray, stride: Any, w: np.ndarray, y: np.ndarray, rows: Any, inputs: Any, width: Any, clip: bool
) -> None:
    less, by = w[:inputs], w[inputs : inputs + inputs]
    for r in range(rows):
        given, to = x[r * stride : r * stride + inputs], y[r * width : r * width + inputs]
        for i in range(inputs):
            moved = (given[i] - less[i]) / by[i]
            if clip:
                moved = _CLIP if moved > _CLIP else moved
                moved = -_CLIP if moved < -_CLIP else moved
            to[i] = moved
