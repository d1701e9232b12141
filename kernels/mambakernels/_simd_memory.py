"""Between tensor memory of any floating-point dtype and vectors of float32 or float64."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from mambakernels._simd_lanes import I32, LANES, Vector, intrinsic, spread

FLOAT32, FLOAT64, BFLOAT16, FLOAT16 = range(4)  # the kinds of tensor memory
_MEMORY = {
    FLOAT32: ir.FloatType(),
    FLOAT64: ir.DoubleType(),
    BFLOAT16: ir.IntType(16),
    FLOAT16: ir.IntType(16),
}


def _mask(builder: Any, lanes: Any) -> Any:
    numbers = ir.Constant(ir.VectorType(lanes.type, LANES), list(range(LANES)))
    return builder.icmp_signed("<", numbers, spread(builder, lanes))


def _masked(builder: Any, operation: str, element: Any, is_load: bool) -> tuple[Any, Any]:
    vector = ir.VectorType(element, LANES)
    mask = ir.VectorType(ir.IntType(1), LANES)
    suffix = {"float": "f32", "double": "f64", "i16": "i16"}[str(element)]
    name = f"llvm.masked.{operation}.v{LANES}{suffix}.p0"
    if is_load:
        kind = ir.FunctionType(vector, [vector.as_pointer(), I32, mask, vector])
    else:
        kind = ir.FunctionType(ir.VoidType(), [vector, vector.as_pointer(), I32, mask])
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
        wide = builder.zext(raw, ir.VectorType(I32, LANES))
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
    bits = builder.bitcast(value, ir.VectorType(I32, LANES))

    def constant(number: int) -> Any:
        return ir.Constant(bits.type, [number] * LANES)

    odd = builder.and_(builder.lshr(bits, constant(16)), constant(1))
    rounded = builder.add(bits, builder.add(odd, constant(0x7FFF)))
    rounded = builder.lshr(rounded, constant(16))
    nan = builder.fcmp_unordered("uno", value, value)  # rounding could carry it to infinity
    return builder.trunc(builder.select(nan, constant(0x7FC0), rounded), short)


def _place(builder: Any, address: Any, index: Any, ahead: Any, memory: Any, write: int) -> Any:
    """Pointer to tensor memory; rows of a tile lie too far apart for the machine to foresee."""
    base = builder.gep(builder.inttoptr(address, memory.as_pointer()), [index])
    bytes_ = ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [bytes_, I32, I32, I32])
    prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    numbers = [ir.Constant(I32, number) for number in (write, 3, 1)]
    builder.call(prefetch, [builder.bitcast(builder.gep(base, [ahead]), bytes_), *numbers])
    return builder.bitcast(base, ir.VectorType(memory, LANES).as_pointer())


@intrinsic
def get(typing_context, address, index, lanes, kind, ahead, like):
    if not isinstance(kind, types.IntegerLiteral):
        return None
    vector = Vector(like.dtype)
    memory = _MEMORY[kind.literal_value]

    def codegen(context, builder, signature, arguments):
        function, short = _masked(builder, "load", memory, is_load=True)
        pointer = _place(builder, arguments[0], arguments[1], arguments[4], memory, 0)
        align = ir.Constant(I32, {"float": 4, "double": 8, "i16": 2}[str(memory)])
        zero = ir.Constant(short, None)
        raw = builder.call(function, [pointer, align, _mask(builder, arguments[2]), zero])
        element = context.get_value_type(vector).element
        return _widen(builder, raw, kind.literal_value, element)

    return vector(types.int64, types.intp, types.intp, kind, types.intp, like), codegen


@intrinsic
def put(typing_context, address, index, lanes, kind, ahead, vector):
    if not isinstance(kind, types.IntegerLiteral):
        return None
    memory = _MEMORY[kind.literal_value]

    def codegen(context, builder, signature, arguments):
        function, _ = _masked(builder, "store", memory, is_load=False)
        pointer = _place(builder, arguments[0], arguments[1], arguments[4], memory, 1)
        align = ir.Constant(I32, {"float": 4, "double": 8, "i16": 2}[str(memory)])
        value = _narrow(builder, arguments[5], kind.literal_value)
        builder.call(function, [value, pointer, align, _mask(builder, arguments[2])])
        return context.get_dummy_value()

    return types.void(types.int64, types.intp, types.intp, kind, types.intp, vector), codegen
