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
    get(address, i, lanes, kind, like), put(address, i, lanes, kind, v)
                                      tensor memory in another dtype; lanes past `lanes` are 0
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

LANES = 16
FLOAT32, FLOAT64, BFLOAT16, FLOAT16 = range(4)  # the kinds of tensor memory

_I32 = ir.IntType(32)
# 2^f = 1 + f q(f) on [-1/2, 1/2]: least maximal relative error under that constraint (Lawson's
# reweighted least squares), so that decays next to 1 are not biased; 2.0e-9 before rounding.
_EXP2_FLOAT32 = (
    0.693147202855045, 0.24022647913631806, 0.055503324711580884, 0.0096184373574686,
    0.001339887440392883, 0.0001535336193896256,
)  # fmt: skip
# Taylor's, whose remainder is below 4e-18 there.
_EXP2_FLOAT64 = tuple(math.log(2) ** k / math.factorial(k) for k in range(1, 14))
_LOG2_E, _LN_2 = 1 / math.log(2), math.log(2)


class Vector(types.Type):
    """16 or 64 numbers of one floating-point type, in registers."""

    def __init__(self, dtype: types.Float, lanes: int = LANES) -> None:
        self.dtype, self.lanes = dtype, lanes
        super().__init__(name=f"Vector({dtype}, {lanes})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Vector) -> None:
        element = ir.FloatType() if fe_type.dtype == types.float32 else ir.DoubleType()
        super().__init__(dmm, fe_type, ir.VectorType(element, fe_type.lanes))


class _Lanes:
    """A vector value under construction, with operators that write LLVM instructions."""

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder, self.value = builder, value
        self.element = value.type.element
        self.single = isinstance(self.element, ir.FloatType)
        self.lanes = value.type.count

    def of(self, number: float | int) -> _Lanes:
        return _Lanes(self.builder, ir.Constant(self.value.type, [number] * self.lanes))

    def _other(self, other: Any) -> Any:
        return other.value if isinstance(other, _Lanes) else self.of(other).value

    def _call(self, name: str, *values: Any) -> _Lanes:
        name = f"llvm.{name}.v{self.lanes}{'f32' if self.single else 'f64'}"
        kind = ir.FunctionType(self.value.type, [self.value.type] * len(values))
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        return _Lanes(self.builder, self.builder.call(function, values))

    def __add__(self, other: Any) -> _Lanes:
        return _Lanes(self.builder, self.builder.fadd(self.value, self._other(other)))

    def __sub__(self, other: Any) -> _Lanes:
        return _Lanes(self.builder, self.builder.fsub(self.value, self._other(other)))

    def __mul__(self, other: Any) -> _Lanes:
        return _Lanes(self.builder, self.builder.fmul(self.value, self._other(other)))

    def __truediv__(self, other: Any) -> _Lanes:
        return _Lanes(self.builder, self.builder.fdiv(self.value, self._other(other)))

    def fma(self, factor: Any, plus: Any) -> _Lanes:
        """self * factor + plus, in one rounding where the machine can."""
        return self._call("fmuladd", self.value, self._other(factor), self._other(plus))

    def magnitude(self) -> _Lanes:
        return self._call("fabs", self.value)

    def choose(self, test: str, than: Any, yes: Any, no: Any) -> _Lanes:
        """`yes` in the lanes where self `test` than; a NaN answers no."""
        mask = self.builder.fcmp_ordered(test, self.value, self._other(than))
        return _Lanes(self.builder, self.builder.select(mask, self._other(yes), self._other(no)))

    def polynomial(self, coefficients: tuple[float, ...]) -> _Lanes:
        total = self.of(coefficients[-1])
        for coefficient in coefficients[-2::-1]:
            total = total.fma(self, coefficient)
        return total


def _split(x: _Lanes) -> tuple[_Lanes, _Lanes, _Lanes]:
    """2^x = scale * (1 + f q) with x - f a whole number: scale, f, q.

    Adding a large number rounds x to a whole one and leaves that, plus the exponent's bias, in the
    low bits: shifted left it is the float 2^round(x), 0 at -127 and infinity at 128.
    """
    bits, bias = (23, 127) if x.single else (52, 1023)
    # A comparison that NaN answers with no, so that NaN goes on.
    x = x.choose("<", -float(bias), -float(bias), x)
    x = x.choose(">", float(bias + 1), float(bias + 1), x)
    magic = 1.5 * 2.0**bits + bias
    shifted = x + magic
    f = x - (shifted - magic)
    whole = ir.VectorType(ir.IntType(32 if x.single else 64), x.lanes)
    raw = x.builder.bitcast(shifted.value, whole)
    raw = x.builder.shl(raw, ir.Constant(whole, [bits] * x.lanes))
    scale = _Lanes(x.builder, x.builder.bitcast(raw, x.value.type))
    return scale, f, f.polynomial(_EXP2_FLOAT32 if x.single else _EXP2_FLOAT64)


def _exp2(x: _Lanes) -> _Lanes:
    scale, f, q = _split(x)
    return scale * f.fma(q, 1.0)


def _exp_negative(x: _Lanes) -> _Lanes:
    """exp(-x), with what rounding x log2(e) loses put back."""
    high = float(np.float32(_LOG2_E)) if x.single else _LOG2_E
    x2 = x * -high
    lost = x.fma(-high, x2 * -1.0) + x * (high - _LOG2_E)
    lost = lost.magnitude().choose("<", 1.0, lost, 0.0)  # an infinite x loses nothing
    power = _exp2(x2)
    return power * lost.fma(_LN_2, 1.0)


def _sigmoid(x: _Lanes) -> _Lanes:
    return x.of(1.0) / (_exp_negative(x) + 1.0)


def _softplus(x: _Lanes) -> _Lanes:
    """max(x, 0) + log(1 + w), w = exp(-|x|); log(1 + w) = 2 atanh(w / (2 + w)), argument <= 1/3."""
    w = _exp_negative(x.magnitude())
    s = w / (w + 2.0)
    terms = 8 if x.single else 17
    series = (s * s).polynomial(tuple(2.0 / (2 * k + 1) for k in range(terms)))
    return s.fma(series, x.choose("<", 0.0, 0.0, x))


def _phi(x2: _Lanes, delta: _Lanes, inverse: _Lanes) -> _Lanes:
    """(2^x2 - 1) / A with x2 = delta A log2(e), inverse = 1 / A; delta times a series near 0."""
    scale, f, q = _split(x2)
    near = delta * q * _LOG2_E
    far = (scale * f.fma(q, 1.0) - 1.0) * inverse
    return x2.magnitude().choose("<=", 0.5, near, far)


def _phi_slope(x2: _Lanes, delta: _Lanes, inverse: _Lanes) -> _Lanes:
    """d phi / dA = (delta 2^x2 - phi) / A, or delta^2 (1/2 + x/3 + x^2/8 + ...) near 0."""
    terms = 8 if x2.single else 15
    coefficients = tuple((k + 1) / math.factorial(k + 2) for k in range(terms))
    near = delta * delta * (x2 * _LN_2).polynomial(coefficients)
    far = (delta * _exp2(x2) - _phi(x2, delta, inverse)) * inverse
    return x2.magnitude().choose("<=", 0.5, near, far)


def _sum_lanes(vectors: list[_Lanes]) -> _Lanes:
    """16 vectors to their 16 sums: halves are folded together until each lane is one sum."""
    builder = vectors[0].builder

    def shuffled(a: _Lanes, b: _Lanes, lanes: list[int]) -> _Lanes:
        return _Lanes(builder, _shuffle(builder, a.value, b.value, lanes))

    # After a step with `width`, each vector holds 16 / width partial sums side by side.
    width = LANES
    while width > 1:
        half = width // 2
        low, high = [], []
        for source in (0, LANES):
            for start in range(0, LANES, width):
                low += range(source + start, source + start + half)
                high += range(source + start + half, source + start + width)
        count = len(vectors) // 2
        vectors = [
            shuffled(vectors[k], vectors[k + count], low)
            + shuffled(vectors[k], vectors[k + count], high)
            for k in range(count)
        ]
        width = half
    order = [0] * LANES  # where the sum of vector k stands
    position = [[k] for k in range(LANES)]
    while len(position) > 1:
        count = len(position) // 2
        position = [position[k] + position[k + count] for k in range(count)]
    for lane, k in enumerate(position[0]):
        order[k] = lane
    return shuffled(vectors[0], vectors[0], order)


def _elementwise(function: Any) -> Any:
    """An intrinsic of vectors of one type, from a function of `_Lanes`."""

    def typed(count: int) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return function(*(_Lanes(builder, value) for value in arguments)).value

        def typer(typing_context: Any, *operands: Any) -> Any:
            if not isinstance(operands[0], Vector) or any(o != operands[0] for o in operands):
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
div = _elementwise(lambda a, b: a / b)
fma = _elementwise(lambda a, b, c: a.fma(b, c))
exp2 = _elementwise(_exp2)
sigmoid = _elementwise(_sigmoid)
softplus = _elementwise(_softplus)
phi = _elementwise(_phi)
phi_slope = _elementwise(_phi_slope)


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
    vector = Vector(array.dtype, lanes)

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
    vector = Vector(array.dtype, lanes)

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
    return _constant(_LN_2, LANES, array)


def _shuffle(builder: Any, first: Any, second: Any, lanes: list[int]) -> Any:
    mask = ir.Constant(ir.VectorType(_I32, len(lanes)), lanes)
    return builder.shuffle_vector(first, second, mask)


def _spread(builder: Any, value: Any) -> Any:
    nothing = ir.Constant(ir.VectorType(value.type, LANES), ir.Undefined)
    single = builder.insert_element(nothing, value, ir.Constant(_I32, 0))
    return _shuffle(builder, single, nothing, [0] * LANES)


def _concatenate(builder: Any, parts: list[Any]) -> Any:
    while len(parts) > 1:
        lanes = list(range(2 * parts[0].type.count))
        parts = [_shuffle(builder, a, b, lanes) for a, b in zip(parts[::2], parts[1::2])]
    return parts[0]


@intrinsic
def spread(typing_context, array, index):
    def codegen(context, builder, signature, arguments):
        pointer = _pointer(context, builder, array, arguments[0], arguments[1])
        return _spread(builder, builder.load(pointer))

    return Vector(array.dtype)(array, types.intp), codegen


@intrinsic
def spread4(typing_context, array, index):
    def codegen(context, builder, signature, arguments):
        pointer = _pointer(context, builder, array, arguments[0], arguments[1])
        places = [builder.gep(pointer, [ir.Constant(arguments[1].type, k)]) for k in range(4)]
        return _concatenate(builder, [_spread(builder, builder.load(p)) for p in places])

    return Vector(array.dtype, 4 * LANES)(array, types.intp), codegen


@intrinsic
def repeat4(typing_context, vector):
    def codegen(context, builder, signature, arguments):
        return _concatenate(builder, [arguments[0]] * 4)

    return Vector(vector.dtype, 4 * LANES)(vector), codegen


@intrinsic
def fold4(typing_context, quad):
    def codegen(context, builder, signature, arguments):
        q = arguments[0]
        a, b, c, d = (
            _shuffle(builder, q, q, list(range(k * LANES, (k + 1) * LANES))) for k in range(4)
        )
        return builder.fadd(builder.fadd(a, b), builder.fadd(c, d))

    return Vector(quad.dtype)(quad), codegen


@intrinsic
def sum_lanes(typing_context, array, index):
    vector = Vector(array.dtype)

    def codegen(context, builder, signature, arguments):
        kind = context.get_value_type(vector)
        vectors = []
        for k in range(LANES):
            place = builder.add(arguments[1], ir.Constant(arguments[1].type, k * LANES))
            pointer = _pointer(context, builder, array, arguments[0], place)
            value = _aligned(builder.load(builder.bitcast(pointer, kind.as_pointer())), array)
            vectors.append(_Lanes(builder, value))
        return _sum_lanes(vectors).value

    return vector(array, types.intp), codegen


_MEMORY = {
    FLOAT32: ir.FloatType(),
    FLOAT64: ir.DoubleType(),
    BFLOAT16: ir.IntType(16),
    FLOAT16: ir.IntType(16),
}


def _mask(builder: Any, lanes: Any) -> Any:
    numbers = ir.Constant(ir.VectorType(lanes.type, LANES), list(range(LANES)))
    return builder.icmp_signed("<", numbers, _spread(builder, lanes))


def _masked(builder: Any, operation: str, element: Any, is_load: bool) -> tuple[Any, Any]:
    vector = ir.VectorType(element, LANES)
    mask = ir.VectorType(ir.IntType(1), LANES)
    suffix = {"float": "f32", "double": "f64", "i16": "i16"}[str(element)]
    name = f"llvm.masked.{operation}.v{LANES}{suffix}.p0"
    if is_load:
        kind = ir.FunctionType(vector, [vector.as_pointer(), _I32, mask, vector])
    else:
        kind = ir.FunctionType(ir.VoidType(), [vector, vector.as_pointer(), _I32, mask])
    return cgutils.get_or_insert_function(builder.module, kind, name), vector


def _to_element(builder: Any, value: Any, element: Any) -> Any:
    kind = ir.VectorType(element, LANES)
    if value.type == kind:
        return value
    if isinstance(element, ir.DoubleType):
        return builder.fpext(value, kind)
    if isinstance(value.type.element, ir.HalfType):
        return builder.fpext(value, kind)
    return builder.fptrunc(value, kind)


def _widen(builder: Any, raw: Any, kind: int, element: Any) -> Any:
    """Tensor memory to a vector of float32 or float64."""
    if kind == BFLOAT16:  # the upper half of a float32
        wide = builder.zext(raw, ir.VectorType(_I32, LANES))
        wide = builder.shl(wide, ir.Constant(wide.type, [16] * LANES))
        raw = builder.bitcast(wide, ir.VectorType(ir.FloatType(), LANES))
    elif kind == FLOAT16:
        raw = builder.bitcast(raw, ir.VectorType(ir.HalfType(), LANES))
    return _to_element(builder, raw, element)


def _narrow(builder: Any, value: Any, kind: int) -> Any:
    """A vector of float32 or float64 to tensor memory, rounded to nearest, ties to even."""
    if kind == FLOAT64:
        return _to_element(builder, value, ir.DoubleType())
    value = _to_element(builder, value, ir.FloatType())
    if kind == FLOAT32:
        return value
    short = ir.VectorType(ir.IntType(16), LANES)
    if kind == FLOAT16:
        half = builder.fptrunc(value, ir.VectorType(ir.HalfType(), LANES))
        return builder.bitcast(half, short)
    bits = builder.bitcast(value, ir.VectorType(_I32, LANES))

    def constant(number: int) -> Any:
        return ir.Constant(bits.type, [number] * LANES)

    odd = builder.and_(builder.lshr(bits, constant(16)), constant(1))
    rounded = builder.add(bits, builder.add(odd, constant(0x7FFF)))
    rounded = builder.lshr(rounded, constant(16))
    nan = builder.fcmp_unordered("uno", value, value)  # rounding could carry it to infinity
    return builder.trunc(builder.select(nan, constant(0x7FC0), rounded), short)


@intrinsic(prefer_literal=True)
def get(typing_context, address, index, lanes, kind, like):
    if not isinstance(kind, types.IntegerLiteral):
        return None
    vector = Vector(like.dtype)
    memory = _MEMORY[kind.literal_value]

    def codegen(context, builder, signature, arguments):
        function, short = _masked(builder, "load", memory, is_load=True)
        base = builder.inttoptr(arguments[0], memory.as_pointer())
        pointer = builder.bitcast(builder.gep(base, [arguments[1]]), short.as_pointer())
        align = ir.Constant(_I32, {"float": 4, "double": 8, "i16": 2}[str(memory)])
        zero = ir.Constant(short, None)
        raw = builder.call(function, [pointer, align, _mask(builder, arguments[2]), zero])
        element = context.get_value_type(vector).element
        return _widen(builder, raw, kind.literal_value, element)

    return vector(types.int64, types.intp, types.intp, kind, like), codegen


@intrinsic(prefer_literal=True)
def put(typing_context, address, index, lanes, kind, vector):
    if not isinstance(kind, types.IntegerLiteral):
        return None
    memory = _MEMORY[kind.literal_value]

    def codegen(context, builder, signature, arguments):
        function, short = _masked(builder, "store", memory, is_load=False)
        base = builder.inttoptr(arguments[0], memory.as_pointer())
        pointer = builder.bitcast(builder.gep(base, [arguments[1]]), short.as_pointer())
        align = ir.Constant(_I32, {"float": 4, "double": 8, "i16": 2}[str(memory)])
        value = _narrow(builder, arguments[4], kind.literal_value)
        builder.call(function, [value, pointer, align, _mask(builder, arguments[2])])
        return context.get_dummy_value()

    return types.void(types.int64, types.intp, types.intp, kind, vector), codegen
