"""The compiled backend: one network at a time, whole training runs inside the processor's cache (needs numba).

The same draws, targets, gradients and Adam steps as the torch backend, to float32 rounding, which comes from other
orders of summation and from the elementary functions below (relative error about 2e-7).

Compiling takes about ten seconds, once for each machine: `_train` and `_apply` are kept on disk (`_kept`), where the
process may write. Results must not depend on which process compiled, so everything that they call is compiled into
them (``forceinline``). Left apart, a function would be there twice, compiled alone and within its caller, rounding
differently: a process that compiles runs the first, one that loads the caller from disk the second.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import llvmlite.binding
import numba
import numpy as np
import torch
from numba import njit
from numpy.polynomial import Chebyshev, Polynomial
from torch import Tensor

from sims_toy.networks import targets

if TYPE_CHECKING:
    from sims_toy.networks.mlp import Mlp
    from sims_toy.networks.schedule import Training

BLOCK = 256  # columns of activations held at a time: with widths up to 64 they fit a second-level cache

config: Any = numba.config
with contextlib.suppress(RuntimeError):  # features that LLVM cannot tell
    features = llvmlite.binding.get_host_cpu_features()
    if features.get("avx512f") and config.CPU_FEATURES is None and config.ENABLE_AVX:
        # LLVM holds Intel's processors to half of their vectors, for fear of a slower clock, which costs a fifth of the
        # speed here. Numba asks once per process: one that has compiled before is left as it is.
        config.CPU_FEATURES = f"{features.flatten()},-prefer-256-bit"

# ------------------------------------------------------------------ kept on disk


def _key() -> str:
    """What compiled code depends on besides what numba asks after itself (the processor and its features).

    That is versions (numpy fits the constants below), numba's flags, and this source.
    """
    flags = {name: value for name, value in os.environ.items() if name.startswith("NUMBA_")}
    flags.pop("NUMBA_CACHE_DIR", None)
    known = [{name: version(name) for name in ("numba", "llvmlite", "numpy")}, flags, Path(__file__).read_text()]
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]


def _kept(**options: Any) -> Callable[[Any], Any]:
    """`njit` with its code on disk: in numba's cache folder, or beside this file; not where nothing can be written."""

    def decorate(function: Any) -> Any:
        before = config.CACHE_DIR
        base = Path(before) if before else Path(__file__).parent / "__pycache__"
        config.CACHE_DIR = str(base / f"sims-{_key()}")  # which numba reads here, and at no other time
        try:
            return njit(cache=True, **options)(function)
        except (RuntimeError, OSError):  # no place at all
            return njit(**options)(function)
        finally:
            config.CACHE_DIR = before

    return decorate


# ------------------------------------------------------------ elementary functions


def _fit(function: Any, degree: int, low: float, high: float) -> tuple[np.float32, ...]:
    """Coefficients of the interpolating polynomial at Chebyshev's points, lowest first."""
    fit = Chebyshev.interpolate(function, degree, [low, high]).convert(kind=Polynomial)
    return tuple(np.float32(c) for c in fit.coef)


_E0, _E1, _E2, _E3, _E4, _E5 = _fit(np.exp2, 5, -0.5, 0.5)
_S0, _S1, _S2, _S3, _S4 = _fit(lambda z: np.pi * np.sinc(np.sqrt(np.abs(z))), 4, 0, 0.25)
_C0, _C1, _C2, _C3, _C4, _C5 = _fit(lambda z: np.cos(np.pi * np.sqrt(np.abs(z))), 5, 0, 0.25)
_A0, _A1, _A2, _A3, _A4 = (np.float32(2 / (2 * i + 1)) for i in range(5))  # 2 artanh(s) / s
_FLOOR = np.float32(60)  # weights of the posterior are at least 2^-60.5 of their own point's
_W0, _W1, _W2, _W3, _W4, _W5 = _fit(lambda f: np.exp2(f - 0.5 - float(_FLOOR)), 5, 0, 1)
_HALF, _ONE, _TWO, _ZERO = np.float32(0.5), np.float32(1), np.float32(2), np.float32(0)
_LOG2E, _LN2, _ROOT2 = np.float32(math.log2(math.e)), np.float32(math.log(2)), np.float32(math.sqrt(2))
_TOP, _SCALE, _TINY = np.float32(86), np.float32(2.0**-32), np.float32(1e-12)

_fast = {"contract", "nsz", "arcp"}  # NaN stays NaN: divergence must show
_sums = {*_fast, "reassoc"}


@njit(fastmath=_fast, inline="always")
def _exp(x):  # type: ignore[no-untyped-def]
    x = -_TOP if x < -_TOP else x
    x = _TOP if x > _TOP else x
    t = x * _LOG2E
    n = np.floor(t + _HALF)
    f = t - n
    p = _E0 + f * (_E1 + f * (_E2 + f * (_E3 + f * (_E4 + f * _E5))))
    return np.int32(np.float32(p).view(np.int32) + (np.int32(n) << np.int32(23))).view(np.float32)


@njit(fastmath=_fast, inline="always")
def _normals(word):  # type: ignore[no-untyped-def]
    """Two standard normal draws of a word, as in `targets.normals`; sine and cosine by the double angle."""
    u = (np.float32(np.uint32(word >> np.uint64(32))) + _HALF) * _SCALE
    bits = np.float32(u).view(np.int32)
    e = np.float32((bits >> np.int32(23)) - np.int32(127))
    m = np.int32((bits & np.int32(0x7FFFFF)) | np.int32(0x3F800000)).view(np.float32)
    large = m > _ROOT2
    m = m * _HALF if large else m
    e = e + _ONE if large else e
    s = (m - _ONE) / (m + _ONE)
    z = s * s
    log = e * _LN2 + s * (_A0 + z * (_A1 + z * (_A2 + z * (_A3 + z * _A4))))
    r = np.float32(math.sqrt(max(-_TWO * log, _ZERO)))
    v = np.float32(np.int32(np.uint32(word & np.uint64(0xFFFFFFFF)))) * _SCALE
    z = v * v
    sin = v * (_S0 + z * (_S1 + z * (_S2 + z * (_S3 + z * _S4))))
    cos = _C0 + z * (_C1 + z * (_C2 + z * (_C3 + z * (_C4 + z * _C5))))
    return r * (_ONE - _TWO * sin * sin), r * (_TWO * sin * cos)


@njit(inline="always")
def _word(key, counter):  # type: ignore[no-untyped-def]
    """`sims_core.draws.random_words` of one counter."""
    z = key + (np.uint64(counter) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


# ----------------------------------------------------------------------- products


@njit(inline="always")
def _four(w, turned, r, i):  # type: ignore[no-untyped-def]
    if turned:
        return w[i, r], w[i + 1, r], w[i + 2, r], w[i + 3, r]
    return w[r, i], w[r, i + 1], w[r, i + 2], w[r, i + 3]


@njit(forceinline=True, fastmath=_fast, error_model="numpy")
def _product(w, turned, rows, n, a, out, columns):  # type: ignore[no-untyped-def]
    """out[r, :columns] = sum_i w[r, i] a[i, :columns], or of w[i, r] where ``turned``.

    Two rows of out by four of a at a time, so that the products and not the cache bound it.
    """
    out[:rows, :columns] = _ZERO
    for r in range(0, rows - 1, 2):
        o, u, i = out[r], out[r + 1], 0
        while i + 4 <= n:
            s0, s1, s2, s3 = _four(w, turned, r, i)
            t0, t1, t2, t3 = _four(w, turned, r + 1, i)
            a0, a1, a2, a3 = a[i], a[i + 1], a[i + 2], a[i + 3]
            for b in range(columns):
                o[b] += s0 * a0[b] + s1 * a1[b] + s2 * a2[b] + s3 * a3[b]
                u[b] += t0 * a0[b] + t1 * a1[b] + t2 * a2[b] + t3 * a3[b]
            i += 4
        for rest in range(i, n):
            s0, t0, a0 = w[rest, r] if turned else w[r, rest], w[rest, r + 1] if turned else w[r + 1, rest], a[rest]
            for b in range(columns):
                o[b] += s0 * a0[b]
                u[b] += t0 * a0[b]
    if rows % 2:
        o = out[rows - 1]
        for i in range(n):
            s0, a0 = w[i, rows - 1] if turned else w[rows - 1, i], a[i]
            for b in range(columns):
                o[b] += s0 * a0[b]


@njit(forceinline=True, fastmath=_sums, error_model="numpy")
def _outer(x, rows, y, columns, n, g):  # type: ignore[no-untyped-def]
    """g[r, c] += sum_b x[r, b] y[c, b] over b < n; two rows of x by four of y at a time."""
    whole = columns // 4 * 4
    for r in range(0, rows - 1, 2):
        one, two = x[r], x[r + 1]
        for c in range(0, whole, 4):
            y0, y1, y2, y3 = y[c], y[c + 1], y[c + 2], y[c + 3]
            s0, s1, s2, s3 = _ZERO, _ZERO, _ZERO, _ZERO
            t0, t1, t2, t3 = _ZERO, _ZERO, _ZERO, _ZERO
            for b in range(n):
                v, u = one[b], two[b]
                s0 += v * y0[b]
                s1 += v * y1[b]
                s2 += v * y2[b]
                s3 += v * y3[b]
                t0 += u * y0[b]
                t1 += u * y1[b]
                t2 += u * y2[b]
                t3 += u * y3[b]
            g[r, c] += s0
            g[r, c + 1] += s1
            g[r, c + 2] += s2
            g[r, c + 3] += s3
            g[r + 1, c] += t0
            g[r + 1, c + 1] += t1
            g[r + 1, c + 2] += t2
            g[r + 1, c + 3] += t3
    for r in range(rows):
        own = x[r]
        for c in range(whole if r < rows - rows % 2 else 0, columns):
            y0, t0 = y[c], _ZERO
            for b in range(n):
                t0 += own[b] * y0[b]
            g[r, c] += t0


@njit(forceinline=True, fastmath=_fast, error_model="numpy")
def _layer(layers, silu, i, p, inputs, slopes, columns):  # type: ignore[no-untyped-def]
    """inputs[i] -> inputs[i + 1], through the activation whose slopes are kept."""
    offset, rows, n, active = layers[i]
    above, slope = inputs[i + 1], slopes[i]
    _product(p[offset : offset + rows * n].reshape(rows, n), False, rows, n, inputs[i], above, columns)
    if active:
        for r in range(rows):
            out, turn = above[r], slope[r]
            if silu:
                for b in range(columns):
                    h = out[b]
                    s = _ONE / (_ONE + _exp(-h))
                    out[b] = h * s
                    turn[b] = s * (_ONE + h * (_ONE - s))
            else:
                for b in range(columns):
                    h = out[b]
                    turn[b] = _ZERO if h <= _ZERO else _ONE
                    out[b] = _ZERO if h <= _ZERO else h
    if i + 1 < len(layers):
        above[rows, :columns] = _ONE


@_kept(nogil=True, error_model="numpy")
def _apply(layers, silu, params, rows, out, work):  # type: ignore[no-untyped-def]
    inputs, slopes = work[0], work[1]
    for k in range(params.shape[0]):
        for first in range(0, rows.shape[2], BLOCK):
            size = min(BLOCK, rows.shape[2] - first)
            columns = -(-size // 32) * 32
            inputs[0, : rows.shape[1], :size] = rows[k, :, first : first + size]
            inputs[0, rows.shape[1], :columns] = _ONE
            for i in range(len(layers)):
                _layer(layers, silu, i, params[k], inputs, slopes, columns)
            out[k, :, first : first + size] = inputs[len(layers), : out.shape[1], :size]


# ----------------------------------------------------------------------- training


@njit(forceinline=True, fastmath=_sums, error_model="numpy")
def _posterior(own, at, sigma, noise, points, dim, near, shift):  # type: ignore[no-untyped-def]
    """shift[:, at] = E[y | x] - y_own over ``points``, where x = y_own + sigma noise[:, at].

    Weights are relative to that of y_own: no other point can be so much nearer that they overflow (by exp(z^2 / 2), z a
    standard normal), so one pass does. Where sigma is small the shift is 0 and not what is left of a difference.
    """
    count, more, square = points.shape[1], dim > 2, _ZERO
    for c in range(dim):
        square += noise[c, at] * noise[c, at]
    scale, start = -_HALF * _LOG2E / max(sigma, _TINY) ** np.int32(2), _HALF * _LOG2E * square + (_FLOOR + _HALF)
    for c in range(2, dim, 2):
        one, two, y0, y1 = points[c, own], points[c + 1, own], points[c], points[c + 1]
        e0, e1 = sigma * noise[c, at], sigma * noise[c + 1, at] if c + 1 < dim else _ZERO
        for j in range(count):
            d0, d1 = e0 - (y0[j] - one), e1 - (y1[j] - two)
            near[j] = d0 * d0 + d1 * d1 if c == 2 else near[j] + d0 * d0 + d1 * d1
    one, two, y0, y1 = points[0, own], points[1, own], points[0], points[1]
    e0, e1 = sigma * noise[0, at], sigma * noise[1, at] if dim > 1 else _ZERO
    total, sum0, sum1 = _ZERO, _ZERO, _ZERO
    for j in range(count):
        s0, s1 = y0[j] - one, y1[j] - two
        d = (e0 - s0) * (e0 - s0) + (e1 - s1) * (e1 - s1)
        if more:
            d += near[j]
        t = d * scale + start  # of 2^(t - _FLOOR - 1/2)
        t = _ZERO if t < _ZERO else t
        n = np.int32(t)
        f = t - np.float32(n)
        p = _W0 + f * (_W1 + f * (_W2 + f * (_W3 + f * (_W4 + f * _W5))))
        w = np.int32(np.float32(p).view(np.int32) + (n << np.int32(23))).view(np.float32)
        if more:
            near[j] = w
        total += w
        sum0 += w * s0
        sum1 += w * s1
    shift[0, at] = sum0 / total
    if dim > 1:
        shift[1, at] = sum1 / total
    for c in range(2, dim):
        y, one, rest = points[c], points[c, own], _ZERO
        for j in range(count):
            rest += near[j] * (y[j] - one)
        shift[c, at] = rest / total


@njit(forceinline=True, fastmath=_fast, error_model="numpy")
def _spread(index, dim, numbers, turn):  # type: ignore[no-untyped-def]
    """Coordinate ``dim`` of the shifted Sobol point ``index`` (`targets.sobol`)."""
    found, bit = turn[dim], 0
    while index:
        if index & 1:
            found ^= numbers[dim, bit]
        index >>= 1
        bit += 1
    return found


@njit(forceinline=True, fastmath=_fast, error_model="numpy")
def _draw(t, first, size, key, points, table, numbers, stratified, sobol, where, rows5, clean, noise, subset):  # type: ignore[no-untyped-def]
    """Rows first, ..., first + size of step t: table entries, clean points, noise (`targets.Layout.draw`).

    sobol: direction numbers (none for random draws), their shifts, the first 32 points, room for those of a block.
    """
    rows, padded, pairs, levels, reference, words = numbers
    start, count, mask, half = t * words, points.shape[1], np.uint64(0xFFFFFFFF), np.uint64(32)
    stratum, moved, quasi = np.uint64(2**32 // rows), _word(key, start + words - 1) >> half, len(sobol[0]) > 0
    level, at, spread = where[0], where[1], sobol[3]
    if quasi:
        for begin in range(0, size, 32):
            number = t * rows + first + begin
            for c in range(len(spread)):
                if number % 32:
                    for b in range(32):
                        spread[c, begin + b] = _spread(number + b, c, sobol[0], sobol[1])
                else:
                    far = _spread(number, c, sobol[0], sobol[1])
                    for b in range(32):
                        spread[c, begin + b] = far ^ sobol[2][c, b]
    for b in range(size):
        word = (spread[0, b] << half) | spread[1, b] if quasi else _word(key, start + first + b)
        low = word & mask
        if stratified:
            low = (np.uint64(first + b) * stratum + ((low * stratum) >> half) + moved) & mask
        level[b] = np.int64((low * np.uint64(levels)) >> half)
        at[b] = np.int64(((word >> half) * np.uint64(count)) >> half)
    if reference:
        if first == 0:
            for j in range(reference):
                word = _word(key, start + padded * (1 + pairs) + j)
                subset[:, j] = points[:, np.int64(((word >> half) * np.uint64(count)) >> half)]
        for b in range(size):
            at[b] = (first + b) % reference
    elif rows >= count:
        for b in range(size):
            at[b] = (first + b) % count
    source = subset if reference else points
    for b in range(size):
        for c in range(5):
            rows5[c, b] = table[level[b], c]
        for c in range(2 * pairs):
            clean[c, b] = source[c, at[b]]
    for c in range(pairs):
        one, two, begin = noise[2 * c], noise[2 * c + 1], start + padded * (1 + c) + first
        if quasi:
            for b in range(size):
                one[b], two[b] = _normals((spread[2 * c + 2, b] << half) | spread[2 * c + 3, b])
        else:
            for b in range(size):
                one[b], two[b] = _normals(_word(key, begin + b))


@njit(forceinline=True, fastmath=_fast, error_model="numpy")
def _batch(size, real, dim, posterior, source, at, rows5, clean, noise, x, near, into, target):  # type: ignore[no-untyped-def]
    """The network's inputs and regression targets for drawn rows."""
    sigma, c_in, time, p, q = rows5[0], rows5[1], rows5[2], rows5[3], rows5[4]
    for c in range(len(clean)):
        for b in range(size):
            x[c, b] = clean[c, b] + sigma[b] * noise[c, b] if c < dim else _ZERO
    if posterior:
        for b in range(real):
            _posterior(at[b], b, sigma[b], noise, source, dim, near, target)
        for c in range(dim):
            for b in range(real):
                noise[c, b] -= target[c, b] / max(sigma[b], _TINY)
                clean[c, b] += target[c, b]
    for c in range(dim):
        for b in range(size):
            into[c, b] = c_in[b] * x[c, b]
            target[c, b] = p[b] * clean[c, b] + q[b] * noise[c, b]
    into[dim, :size] = time[:size]
    into[dim + 1, :size] = _ONE


@_kept(nogil=True, fastmath=_sums, error_model="numpy")
def _train(layers, silu, p, ema, points, key, table, numbers, flags, scalars, adam, loss, work, sobol):  # type: ignore[no-untyped-def]
    rows, padded, pairs, _, reference, _ = numbers
    stratified, posterior = flags
    dim, depth = layers[-1, 1], len(layers)
    inputs, slopes, deltas, stride = work[0], work[1], work[2], work.shape[3]
    scratch = np.zeros((5, max(2 * pairs, 5), stride), np.float32)
    target, x, clean, noise, rows5 = scratch[0], scratch[1], scratch[2], scratch[3], scratch[4]
    where, near = np.empty((2, stride), np.int64), np.empty(points.shape[1], np.float32)
    subset = np.zeros((2 * pairs, reference), np.float32)
    source = subset if reference else points
    sobol = (*sobol, np.zeros((len(sobol[0]), stride), np.uint64))
    gradient, first, second = np.zeros_like(p), np.zeros_like(p), np.zeros_like(p)
    beta1, beta2, eps = adam
    share = np.float32(1 / (rows * dim))
    for t in range(len(loss)):
        gradient[:] = _ZERO
        total = _ZERO
        for begin in range(0, padded, BLOCK):
            size = min(BLOCK, padded - begin)
            real = min(size, rows - begin)
            _draw(t, begin, size, key, points, table, numbers, stratified, sobol, where, rows5, clean, noise, subset)
            _batch(size, real, dim, posterior, source, where[1], rows5, clean, noise, x, near, inputs[0], target)
            for i in range(depth):
                _layer(layers, silu, i, p, inputs, slopes, size)
            for c in range(dim):
                f, y, delta = inputs[depth, c], target[c], deltas[depth % 2, c]
                for b in range(real):
                    error = f[b] - y[b]
                    total += error * error * share
                    delta[b] = _TWO * share * error
                delta[real:size] = _ZERO
            for i in range(depth - 1, -1, -1):
                offset, out, n, _ = layers[i]
                delta, below = deltas[(i + 1) % 2], deltas[i % 2]
                _outer(delta, out, inputs[i], n, size, gradient[offset : offset + out * n].reshape(out, n))
                if i > 0:
                    w = p[offset : offset + out * n].reshape(out, n)
                    _product(w, True, n - 1, out, delta, below, size)
                    if layers[i - 1, 3]:
                        for r in range(n - 1):
                            back, slope = below[r], slopes[i - 1, r]
                            for b in range(size):
                                back[b] *= slope[b]
        loss[t] = total
        check = total
        for j in range(len(p)):
            check += gradient[j]
        if not np.isfinite(check):
            p[:] = np.nan
            ema[:] = np.nan
            loss[t + 1 :] = np.nan
            return
        rate, correction, fresh = scalars[t, 0], scalars[t, 1], scalars[t, 2]
        for j in range(len(p)):
            g = gradient[j]
            first[j] += (_ONE - beta1) * (g - first[j])
            second[j] = beta2 * second[j] + (_ONE - beta2) * g * g
            p[j] -= rate * first[j] / (np.float32(math.sqrt(second[j] * correction)) + eps)
        for j in range(len(ema)):
            ema[j] += fresh * (p[j] - ema[j])


def train(
    mlp: Mlp,
    params: Tensor,
    ema: Tensor | None,
    data: Tensor,
    counts: Tensor,
    keys: Tensor,
    table: Tensor,
    settings: Training,
    loss: Tensor,
) -> None:
    """Train the networks of ``params`` [K, P] in place, and ``ema``; fills ``loss`` [K, steps]. Float32, on the CPU.

    data: [K, N, d]; counts, keys: [K]; table: [K, T, 5] (`sims_toy.networks.targets.level_table`). Diverged rows become
    NaN.
    """
    layers = _layers(mlp)
    columns = min(settings.layout(mlp.dim, int(counts.max())).padded, BLOCK)
    work = _work(mlp, 3, columns)
    sobol = _sobol(keys, 2 + mlp.dim + mlp.dim % 2 if settings.quasi else 0)
    adam = tuple(np.float32(v) for v in (settings.beta1, settings.beta2, settings.eps))
    scalars = {
        rows: settings.scalars(rows).numpy().astype(np.float32) for rows in counts.clamp(max=settings.batch).tolist()
    }
    for k in range(len(params)):
        plan = settings.layout(mlp.dim, int(counts[k]))
        points = np.zeros((2 * plan.pairs, plan.count), np.float32)
        points[: mlp.dim] = data[k, : plan.count].numpy().T
        numbers = (plan.rows, plan.padded, plan.pairs, plan.levels, plan.reference, plan.words)
        average = np.empty(0, np.float32) if ema is None else ema[k].numpy()
        flags = (plan.stratified, settings.target == "posterior")
        key, entries, silu = np.uint64(int(keys[k]) % 2**64), table[k].numpy(), mlp.activation == "silu"
        _train(
            layers, silu, params[k].numpy(), average, points, key, entries, numbers, flags, scalars[plan.rows], adam,
            loss[k].numpy(), work, (sobol[0], sobol[1][k], sobol[2]),
        )  # fmt: skip


def _sobol(keys: Tensor, dims: int) -> list[Any]:
    """Direction numbers, every network's shifts and the first 32 points, uint64; nothing of no dimensions."""
    if not dims:
        return [np.zeros(shape, np.uint64) for shape in ((0, 30), (len(keys), 0), (0, 32))]
    near = targets.sobol(torch.arange(32), dims).T
    return [part.numpy().astype(np.uint64) for part in (targets.directions(dims), targets.turns(keys, dims), near)]


def forward(mlp: Mlp, params: Tensor, rows: Tensor) -> Tensor:
    """F [K, d, n] for the networks' inputs ``rows`` [K, d + 1, n], float32 on the CPU."""
    out = rows.new_empty(rows.shape[0], mlp.dim, rows.shape[2])
    silu, work = mlp.activation == "silu", _work(mlp, 2, BLOCK)
    _apply(_layers(mlp), silu, params.contiguous().numpy(), rows.contiguous().numpy(), out.numpy(), work)
    return out


def _layers(mlp: Mlp) -> Any:
    return np.array([(*layer, mlp.active(i)) for i, layer in enumerate(mlp.layers)], np.int64)


def _work(mlp: Mlp, parts: int, columns: int) -> Any:
    """Activations, slopes, deltas. Rows are not a power of 2 apart, or they would fight for the same cache sets."""
    return np.zeros((parts, len(mlp.layers) + 1, max(*mlp.widths, mlp.dim + 1) + 1, columns + 16), np.float32)
