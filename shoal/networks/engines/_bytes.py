"""What numba compiles for weights of eight bits: products of bytes, by the processor's own instruction (AVX-512 VNNI).

``vpdpbusd`` multiplies four unsigned bytes with four signed ones and adds the products to a sum of 32 bits, for 16 sums
at once. Weights are packed for it, ``[width / BLOCK, inputs / 4, BLOCK, 4]``: they are read once, in the order they
lie in, which is all that counts with one observation in a call.
"""

from __future__ import annotations

import functools
from typing import Any

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic

from shoal.networks.engines import _kernels

DYNAMIC, STATIC = 8, 9  # kinds; at `at` lie bias, step, sum of the weights [width], then low and high; bytes at `aside`
BLOCK = 64  # outputs whose sums are kept in registers
LANES = 16  # sums in one
MOST = 2**16  # inputs: sums stay below 2^31
_ZERO, _ONE, _NAN = map(np.float32, (0.0, 1.0, np.nan))
_FOUR, _BLOCK = map(np.uint64, (4, BLOCK))


@functools.cache
def here() -> bool:
    """Whether this processor has it, and this numba can compile it."""
    try:
        config: Any = numba.config
        if config.CPU_NAME or not llvmlite.binding.get_host_cpu_features().get("avx512vnni"):
            return False
        weights = np.arange(-3 * BLOCK, 3 * BLOCK).reshape(6, BLOCK).astype(np.int8)
        packed, totals = np.zeros(8 * BLOCK, np.int8), np.zeros(BLOCK, np.float32)
        pack(weights.reshape(-1), packed, totals, 6, BLOCK)
        sums = np.zeros(BLOCK, np.int32)
        _products(np.array([255, 0, 7, 128, 1, 3, 0, 0], np.uint8), packed, sums, np.uint64(2), np.uint64(BLOCK))
    except (RuntimeError, numba.core.errors.NumbaError):
        return False
    return bool((sums == np.array([255, 0, 7, 128, 1, 3]) @ weights.astype(np.int32)).all())


def _generated(typing: Any, numbers: Any, packed: Any, sums: Any, groups: Any) -> Any:
    """``sums [BLOCK]`` of ``numbers [4 groups]`` u8 and ``packed [groups, BLOCK, 4]`` i8."""
    del typing
    signature = numba.types.void(numbers, packed, sums, groups)

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        word, place = ir.IntType(32), ir.IntType(64)
        vector = ir.VectorType(word, LANES)
        nothing, undefined = ir.Constant(vector, [0] * LANES), ir.Constant(vector, ir.Undefined)
        multiply = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(vector, [vector] * 3), "llvm.x86.avx512.vpdpbusd.512"
        )
        bytes_of, weights_of, to = (
            builder.bitcast(context.make_array(kind)(context, builder, array).data, ir.IntType(8).as_pointer())
            for kind, array in zip(signature.args[:3], given[:3], strict=True)
        )

        def at(start: Any, offset: Any, kind: Any) -> Any:
            return builder.bitcast(builder.gep(start, [offset]), kind.as_pointer())

        held = [cgutils.alloca_once_value(builder, nothing) for _ in range(BLOCK // LANES)]
        count = context.cast(builder, given[3], signature.args[3], numba.types.intp)
        with cgutils.for_range(builder, count, intp=place) as loop:
            four = builder.load(at(bytes_of, builder.mul(loop.index, place(4)), word), align=1)
            spread = builder.insert_element(undefined, four, word(0))
            spread = builder.shuffle_vector(spread, undefined, nothing)
            row = builder.mul(loop.index, place(4 * BLOCK))
            for i, each in enumerate(held):
                weights = builder.load(at(weights_of, builder.add(row, place(4 * LANES * i)), vector), align=1)
                builder.store(builder.call(multiply, [builder.load(each), spread, weights]), each)
        for i, each in enumerate(held):
            builder.store(builder.load(each), at(to, place(4 * LANES * i), vector), align=1)
        return context.get_dummy_value()

    return signature, generate


_dots: Any = intrinsic(_generated)


@_kernels.compiled
def _products(numbers: np.ndarray, packed: np.ndarray, sums: np.ndarray, groups: Any, width: Any) -> None:
    """``sums [width]`` of ``numbers [4 groups]``."""
    for block in range(width // _BLOCK):
        start = block * _BLOCK
        _dots(numbers, packed[start * groups * _FOUR :], sums[start:], groups)


@_kernels.compiled
def pack(kernel: np.ndarray, packed: np.ndarray, totals: np.ndarray, inputs: int, outputs: int) -> None:
    """Weights as `_products` reads them; what is beyond them in `packed` is left as it is.

    Args:
        kernel: ``[inputs * outputs]`` i8.
        packed: i8, written.
        totals: ``[outputs]`` f32, written: the sum of each output's weights.
        inputs: Rows.
        outputs: Columns.
    """
    groups = (inputs + 3) // 4
    totals[:] = _ZERO
    for start in range(0, outputs, BLOCK):
        wide = min(BLOCK, outputs - start)
        for i in range(inputs):
            given = kernel[i * outputs + start : i * outputs + start + wide]
            to = packed[(start * groups + i // 4 * BLOCK) * 4 + i % 4 :]
            for j in range(wide):
                to[4 * j] = given[j]
                totals[start + j] += given[j]


@_kernels.compiled
def run(
    table: np.ndarray,
    weights: np.ndarray,
    work: np.ndarray,
    packed: np.ndarray,
    numbers: np.ndarray,
    sums: np.ndarray,
) -> None:
    """As `_kernels.run`.

    Args:
        table: See there.
        weights: See there.
        work: See there.
        packed: i8, of all layers.
        numbers: u8, room for a layer's input; 0 beyond it up to a multiple of 4.
        sums: i32, room for a layer's output.
    """
    for k in range(len(table)):
        if table[k, 0] in (DYNAMIC, STATIC):
            _layer(table[k], weights, work, packed, numbers, sums)
        else:
            _kernels.layer(table[k], weights, work)


@_kernels.compiled
def _layer(
    row: np.ndarray, weights: np.ndarray, work: np.ndarray, packed: np.ndarray, numbers: np.ndarray, sums: np.ndarray
) -> None:
    kind, rows, source, stride, inputs, target, width, at, aside = row
    x, w = work[source : source + rows * stride], weights[at:]
    bias, step, total = w[:width], w[width : width + width], w[width + width : width + width + width]
    unit, zero = _kernels.step_of(x, stride, w[width + width + width :], rows, inputs, kind == STATIC)
    groups = (inputs + _FOUR - np.uint64(1)) // _FOUR
    for r in range(rows):
        given = x[r * stride : r * stride + inputs]
        missing = _bytes_of(given, numbers, unit, zero)
        numbers[inputs : groups * _FOUR] = 0
        _products(numbers, packed[aside:], sums, groups, width)
        to = work[target + r * width : target + r * width + width]
        _unquantise(sums, total, step, bias, to, unit if missing == _ZERO else _NAN, zero)


@_kernels.compiled
def _bytes_of(given: np.ndarray, to: np.ndarray, unit: Any, zero: Any) -> Any:
    """How many are not numbers is returned; those become 0."""
    missing = _ZERO
    for i in range(len(given)):
        number = _kernels.in_steps(given[i], unit, zero)
        missing += _ONE if given[i] != given[i] else _ZERO
        to[i] = np.uint8(number if number > _ZERO else _ZERO)
    return missing


@_kernels.compiled
def _unquantise(
    sums: np.ndarray, total: np.ndarray, step: np.ndarray, bias: np.ndarray, to: np.ndarray, unit: Any, zero: Any
) -> None:
    below = np.int32(_ZERO if np.isnan(zero) else zero)
    for j in range(len(to)):
        whole = sums[j] - below * np.int32(total[j])
        to[j] = np.float32(whole) * (unit * step[j]) + bias[j]
