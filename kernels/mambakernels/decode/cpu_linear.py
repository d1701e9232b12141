"""Products of a packed matrix with one vector, and the norm before them.

Bytes: every weight is read once. Several sums are under way at a time, because one sum would wait
for itself.
"""

from __future__ import annotations

import math

from mambakernels._numba import jit
from mambakernels._simd import (
    LANES,
    add,
    fma,
    fold4,
    load,
    load4,
    mul,
    repeat4,
    spread,
    spread4,
    stay_apart,
    store,
    zero,
    zero4,
)


@jit(inner=True)
def linear(weights, at, bias, inputs, outputs, memory, x, y):
    """memory[y : y + outputs] = W memory[x : x + inputs] + bias; outputs in whole vectors."""
    stay_apart()
    o = 0
    while outputs - o >= 128:
        first, second = zero4(memory), zero4(memory)
        for i in range(inputs):
            factor = repeat4(spread(memory, x + i))
            first = fma(factor, load4(weights, at), first)
            second = fma(factor, load4(weights, at + 64), second)
            at += 128
        store(memory, y + o, add(first, load4(weights, bias + o)))
        store(memory, y + o + 64, add(second, load4(weights, bias + o + 64)))
        o += 128
    while outputs - o >= 64:
        first, second = zero4(memory), zero4(memory)
        for i in range(0, inputs - 1, 2):
            first = fma(repeat4(spread(memory, x + i)), load4(weights, at), first)
            second = fma(repeat4(spread(memory, x + i + 1)), load4(weights, at + 64), second)
            at += 128
        if inputs % 2:
            first = fma(repeat4(spread(memory, x + inputs - 1)), load4(weights, at), first)
            at += 64
        store(memory, y + o, add(add(first, second), load4(weights, bias + o)))
        o += 64
    while outputs - o >= LANES:
        # Four inputs side by side: their 4 x 16 weights are one quad.
        first, second = zero4(memory), zero4(memory)
        i = 0
        while inputs - i >= 8:
            first = fma(spread4(memory, x + i), load4(weights, at), first)
            second = fma(spread4(memory, x + i + 4), load4(weights, at + 64), second)
            at += 128
            i += 8
        total = fold4(add(first, second))
        while i < inputs:
            total = fma(spread(memory, x + i), load(weights, at), total)
            at += LANES
            i += 1
        store(memory, y + o, add(total, load(weights, bias + o)))
        o += LANES


@jit(inner=True)
def rms_norm(weights, at, eps, width, memory, x, y, spare):
    """memory[y..] = x / sqrt(mean(x^2) + eps) * weight; x is padded with zeros."""
    stay_apart()
    total = zero(memory)
    for i in range(0, width, LANES):
        v = load(memory, x + i)
        total = fma(v, v, total)
    store(memory, spare, total)
    squares = 0.0
    for k in range(LANES):
        squares += memory[spare + k]
    memory[spare] = 1.0 / math.sqrt(squares / width + eps)
    scale = spread(memory, spare)
    for i in range(0, width, LANES):
        store(memory, y + i, mul(mul(load(memory, x + i), scale), load(weights, at + i)))


@jit(inner=True)
def add_to(memory, x, y, count):
    """memory[x..] += memory[y..], `count` numbers, padded to whole vectors."""
    for i in range(0, count, LANES):
        store(memory, x + i, add(load(memory, x + i), load(memory, y + i)))
