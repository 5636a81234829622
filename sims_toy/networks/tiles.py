"""Tiles of matrix products in vector registers, for the compiled backend (needs numba).

Written in LLVM's language because compilers do not keep such a tile in registers by themselves: about twice the speed
of loops, and of a BLAS library on products as small as these. Pointers are integer addresses of float32; strides count
floats. After editing this file remove numba's cache of `sims_toy.networks.kernel`, which watches that file alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import binding, ir
from numba.core import cgutils, types
from numba.extending import intrinsic

WIDE = bool(binding.get_host_cpu_features().get("avx512f"))
LANES = 16 if WIDE else 8
ROWS = 8 if WIDE else 4  # of a product's tile, two vectors wide: 16 or 8 registers of sums
TALL, BROAD = (8, 3) if WIDE else (4, 2)  # a tile of dot products: 24 or 8 registers of sums

_FLOAT, _INT = ir.FloatType(), ir.IntType(64)
_VECTOR = ir.VectorType(_FLOAT, LANES)


def _const(value: int) -> Any:
    return ir.Constant(_INT, value)


def _pointer(b: Any, base: Any, kind: Any, *offsets: Any) -> Any:
    for offset in offsets:
        base = b.add(base, b.mul(offset, _const(4)))
    return b.inttoptr(base, kind.as_pointer())


def _load(b: Any, base: Any, kind: Any, *offsets: Any) -> Any:
    return b.load(_pointer(b, base, kind, *offsets), align=4)


def _sums(b: Any, rows: int, columns: int) -> list[list[Any]]:
    zero: Any = ir.Constant(_VECTOR, None)
    return [[cgutils.alloca_once_value(b, zero) for _ in range(columns)] for _ in range(rows)]  # type: ignore[no-untyped-call]


def _multiply_add(b: Any, total: Any, x: Any, y: Any) -> None:
    b.store(b.fadd(b.load(total), b.fmul(x, y, flags=("contract",)), flags=("contract",)), total)


def _lanes(numbers: list[int]) -> Any:
    return ir.Constant(ir.VectorType(ir.IntType(32), len(numbers)), numbers)


def _horizontal(b: Any, vectors: list[Any]) -> list[Any]:
    """The sum over each vector's lanes, LANES of them a vector, in order: a tree that folds two vectors into one."""
    vectors = vectors + [ir.Constant(_VECTOR, None)] * (-len(vectors) % LANES)
    width = LANES
    while width > 1:
        starts = range(0, 2 * LANES, width)
        low = _lanes([start + i for start in starts for i in range(width // 2)])
        high = _lanes([start + i for start in starts for i in range(width // 2, width)])
        pairs = zip(vectors[::2], vectors[1::2], strict=True)
        vectors = [b.fadd(b.shuffle_vector(u, v, low), b.shuffle_vector(u, v, high)) for u, v in pairs]
        width //= 2
    return vectors


def _tile(rows: int) -> Any:
    def build(context: Any, w: Any, sr: Any, si: Any, n: Any, a: Any, sa: Any, out: Any, so: Any) -> Any:
        def code(context: Any, b: Any, signature: Any, args: Any) -> Any:
            w, sr, si, n, a, sa, out, so = args
            lanes, sums = [_const(0), _const(LANES)], _sums(b, rows, 2)
            none, zeros = ir.Constant(_VECTOR, ir.Undefined), ir.Constant(ir.VectorType(ir.IntType(32), LANES), None)
            with cgutils.for_range(b, n) as loop:
                x = [_load(b, a, _VECTOR, b.mul(loop.index, sa), lane) for lane in lanes]
                for r in range(rows):
                    s = _load(b, w, _FLOAT, b.mul(loop.index, si), b.mul(_const(r), sr))
                    s = b.shuffle_vector(b.insert_element(none, s, ir.Constant(ir.IntType(32), 0)), none, zeros)
                    for total, value in zip(sums[r], x, strict=True):
                        _multiply_add(b, total, s, value)
            for r in range(rows):
                for total, lane in zip(sums[r], lanes, strict=True):
                    b.store(b.load(total), _pointer(b, out, _VECTOR, b.mul(_const(r), so), lane), align=4)
            return context.get_dummy_value()

        return types.void(w, sr, si, n, a, sa, out, so), code

    return intrinsic(build)


def _dots(rows: int, columns: int) -> Any:
    def build(context: Any, x: Any, sx: Any, y: Any, sy: Any, n: Any, g: Any, sg: Any) -> Any:
        def code(context: Any, b: Any, signature: Any, args: Any) -> Any:
            x, sx, y, sy, n, g, sg = args
            sums = _sums(b, rows, columns)
            with cgutils.for_range(b, n) as loop:
                at = b.mul(loop.index, _const(LANES))
                ys = [_load(b, y, _VECTOR, b.mul(_const(c), sy), at) for c in range(columns)]
                for r in range(rows):
                    value = _load(b, x, _VECTOR, b.mul(_const(r), sx), at)
                    for c in range(columns):
                        _multiply_add(b, sums[r][c], value, ys[c])
            room = 1 << (columns - 1).bit_length()  # a power of 2 a row, so that no row is torn
            blank = [ir.Constant(_VECTOR, None)] * (room - columns)
            totals = _horizontal(b, [v for row in sums for v in [*(b.load(total) for total in row), *blank]])
            for r in range(rows):
                whole, first = divmod(r * room, LANES)
                kind, none = ir.VectorType(_FLOAT, columns), ir.Constant(_VECTOR, ir.Undefined)
                row = b.shuffle_vector(totals[whole], none, _lanes([first + c for c in range(columns)]))
                to = _pointer(b, g, kind, b.mul(_const(r), sg))
                b.store(b.fadd(b.load(to, align=4), row), to, align=4)
            return context.get_dummy_value()

        return types.void(x, sx, y, sy, n, g, sg), code

    return intrinsic(build)


def _cast(source: Any, target: Any, kind: Any) -> Callable[..., Any]:
    def build(context: Any, value: Any) -> Any:
        return target(source), lambda context, b, signature, args: b.bitcast(args[0], kind)

    return intrinsic(build)


#: (w, sr, si, n, a, sa, out, so): out[r, :2 LANES] = sum_{i < n} w[r, i] a[i, :2 LANES], for ROWS rows, and for one
product, product_one = _tile(ROWS), _tile(1)

#: (x, sx, y, sy, n, g, sg): g[r, c] += x[r] . y[c] over n vectors of LANES, for TALL or one row, BROAD or one column
dots, dots_column, dots_row, dots_one = _dots(TALL, BROAD), _dots(TALL, 1), _dots(1, BROAD), _dots(1, 1)

as_float = _cast(types.int32, types.float32, _FLOAT)
as_bits = _cast(types.float32, types.int32, ir.IntType(32))
