"""Vectors inside Numba kernels, written as LLVM's own vector code.

Numba leaves vectorising to LLVM's loop passes, which give up on exp and choose half-width vectors
on AVX-512. These intrinsics say exactly what is wanted; LLVM splits a vector over whatever
registers the machine has (AVX-512, AVX2, NEON). A vector has 16 lanes; a quad has 64, four vectors
side by side: long dependent chains such as exp2 run twice as fast when four are under way. Both
have the type of the scratch array that they are loaded from, float32 or float64. An index counts
numbers and is never negative.

    load(array, i), store(array, i, v)    lanes array[i : i + 16]; store takes a quad as well
    load4(array, i)                       a quad, array[i : i + 64]
    spread(array, i)                      array[i] in all lanes
    spread4(array, i)                     array[i], array[i + 1], ... in 16 lanes each
    repeat4(v), fold4(q)                  a vector four times over; the sum of the four
    zero(array), zero4(array), one(array), ln_2(array)   constants of the array's type
    add, sub, mul, fma(a, b, c) = a b + c
    exp2(v)                           relative error below 2^-23 (float32), 2^-51 (float64);
                                      0 below 2^-126, infinity above 2^128, NaN stays NaN
    softplus(v), sigmoid(v)
    phi(x2, delta, inverse)           (2^x2 - 1) / A, the zero-order hold's input weight
    phi_slope(x2, delta, inverse)     its derivative in A
    sum_lanes(array, i)               lane k = sum of array[i + 16 k : i + 16 k + 16], k in 0..15
    get(address, i, lanes, kind, ahead, like), put(address, i, lanes, kind, ahead, v)
                                      tensor memory in another dtype; lanes past `lanes` are 0;
                                      what lies `ahead` numbers further is fetched into the cache
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from mambakernels import _simd_lanes as emit
from mambakernels import _simd_math as functions
from mambakernels._simd_lanes import LANES, intrinsic
from mambakernels._simd_memory import BFLOAT16, FLOAT16, FLOAT32, FLOAT64, get, put

__all__ = [
    "BFLOAT16", "FLOAT16", "FLOAT32", "FLOAT64", "LANES", "add", "exp2", "fma", "fold4", "get",
    "ln_2", "load", "load4", "mul", "one", "phi", "phi_slope", "put", "repeat4", "sigmoid",
    "softplus", "spread", "spread4", "stay_apart", "store", "sub", "sum_lanes", "zero", "zero4",
]  # fmt: skip


def _elementwise(function: Any) -> Any:
    """An intrinsic of vectors of one type, from a function of `Lanes`."""

    def typed(count: int) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return function(*(emit.Lanes(builder, value) for value in arguments)).value

        def typer(typing_context: Any, *operands: Any) -> Any:
            if not isinstance(operands[0], emit.Vector) or any(o != operands[0] for o in operands):
                return None
            return operands[0](*operands), codegen

        # Numba reads an intrinsic's parameters by name.
        if count == 1:
            return lambda typing_context, a: typer(typing_context, a)
        if count == 2:
            return lambda typing_context, a, b: typer(typing_context, a, b)
        return lambda typing_context, a, b, c: typer(typing_context, a, b, c)

    return intrinsic(typed(function.__code__.co_argcount))


add = _elementwise(lambda a, b: a + b)
sub = _elementwise(lambda a, b: a - b)
mul = _elementwise(lambda a, b: a * b)
fma = _elementwise(lambda a, b, c: a.fma(b, c))
exp2 = _elementwise(functions.exp2)
sigmoid = _elementwise(functions.sigmoid)
softplus = _elementwise(functions.softplus)
phi = _elementwise(functions.phi)
phi_slope = _elementwise(functions.phi_slope)


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [index])


def _aligned(instruction: Any, array_type: Any) -> Any:
    instruction.align = 4 if array_type.dtype == types.float32 else 8
    return instruction


@intrinsic
def stay_apart(typing_context):
    """Called first in a function: LLVM shall not copy it into its callers (shorter compilation)."""

    def codegen(context, builder, signature, arguments):
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.void(), codegen


def _loads(lanes: int, typing_context: Any, array: Any, index: Any) -> Any:
    vector = emit.Vector(array.dtype, lanes)

    def codegen(context, builder, signature, arguments):
        pointer = _pointer(context, builder, array, arguments[0], arguments[1])
        kind = context.get_value_type(vector)
        return _aligned(builder.load(builder.bitcast(pointer, kind.as_pointer())), array)

    return vector(array, types.intp), codegen


@intrinsic
def load(typing_context, array, index):
    return _loads(LANES, typing_context, array, index)


@intrinsic
def load4(typing_context, array, index):
    return _loads(4 * LANES, typing_context, array, index)


@intrinsic
def store(typing_context, array, index, vector):
    def codegen(context, builder, signature, arguments):
        pointer = _pointer(context, builder, array, arguments[0], arguments[1])
        pointer = builder.bitcast(pointer, arguments[2].type.as_pointer())
        _aligned(builder.store(arguments[2], pointer), array)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), codegen


def _constant(number: float, lanes: int, array: Any) -> Any:
    vector = emit.Vector(array.dtype, lanes)

    def codegen(context, builder, signature, arguments):
        return ir.Constant(context.get_value_type(vector), [number] * lanes)

    return vector(array), codegen


@intrinsic
def zero(typing_context, array):
    return _constant(0.0, LANES, array)


@intrinsic
def zero4(typing_context, array):
    return _constant(0.0, 4 * LANES, array)


@intrinsic
def one(typing_context, array):
    return _constant(1.0, LANES, array)


@intrinsic
def ln_2(typing_context, array):
    return _constant(functions.LN_2, LANES, array)


@intrinsic
def spread(typing_context, array, index):
    def codegen(context, builder, signature, arguments):
        pointer = _pointer(context, builder, array, arguments[0], arguments[1])
        return emit.spread(builder, builder.load(pointer))

    return emit.Vector(array.dtype)(array, types.intp), codegen


@intrinsic
def spread4(typing_context, array, index):
    def codegen(context, builder, signature, arguments):
        pointer = _pointer(context, builder, array, arguments[0], arguments[1])
        places = [builder.gep(pointer, [ir.Constant(arguments[1].type, k)]) for k in range(4)]
        return emit.concatenate(builder, [emit.spread(builder, builder.load(p)) for p in places])

    return emit.Vector(array.dtype, 4 * LANES)(array, types.intp), codegen


@intrinsic
def repeat4(typing_context, vector):
    def codegen(context, builder, signature, arguments):
        return emit.concatenate(builder, [arguments[0]] * 4)

    return emit.Vector(vector.dtype, 4 * LANES)(vector), codegen


@intrinsic
def fold4(typing_context, quad):
    def codegen(context, builder, signature, arguments):
        q = arguments[0]
        a, b, c, d = (
            emit.shuffle(builder, q, q, list(range(k * LANES, (k + 1) * LANES))) for k in range(4)
        )
        return builder.fadd(builder.fadd(a, b), builder.fadd(c, d))

    return emit.Vector(quad.dtype)(quad), codegen


@intrinsic
def sum_lanes(typing_context, array, index):
    vector = emit.Vector(array.dtype)

    def codegen(context, builder, signature, arguments):
        kind = context.get_value_type(vector)
        vectors = []
        for k in range(LANES):
            place = builder.add(arguments[1], ir.Constant(arguments[1].type, k * LANES))
            pointer = _pointer(context, builder, array, arguments[0], place)
            value = _aligned(builder.load(builder.bitcast(pointer, kind.as_pointer())), array)
            vectors.append(emit.Lanes(builder, value))
        return functions.sum_lanes(vectors).value

    return vector(array, types.intp), codegen
