"""The type of a vector in Numba, and the writing of LLVM instructions with Python's operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import extending, types
from numba.core import cgutils
from numba.extending import models, register_model

LANES = 16
I32 = ir.IntType(32)


def intrinsic(function: Callable[..., Any]) -> Callable[..., Any]:
    """Numba's decorator, told to pass constants on as constants; callers see no typing context."""
    return extending.intrinsic(prefer_literal=True)(function)


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


class Lanes:
    """A vector value under construction, with operators that write LLVM instructions."""

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder, self.value = builder, value
        self.element = value.type.element
        self.single = isinstance(self.element, ir.FloatType)
        self.lanes = value.type.count

    def of(self, number: float | int) -> Lanes:
        return Lanes(self.builder, ir.Constant(self.value.type, [number] * self.lanes))

    def _other(self, other: Any) -> Any:
        return other.value if isinstance(other, Lanes) else self.of(other).value

    def _call(self, name: str, *values: Any) -> Lanes:
        name = f"llvm.{name}.v{self.lanes}{'f32' if self.single else 'f64'}"
        kind = ir.FunctionType(self.value.type, [self.value.type] * len(values))
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        return Lanes(self.builder, self.builder.call(function, values))

    def __add__(self, other: Any) -> Lanes:
        return Lanes(self.builder, self.builder.fadd(self.value, self._other(other)))

    def __sub__(self, other: Any) -> Lanes:
        return Lanes(self.builder, self.builder.fsub(self.value, self._other(other)))

    def __mul__(self, other: Any) -> Lanes:
        return Lanes(self.builder, self.builder.fmul(self.value, self._other(other)))

    def __truediv__(self, other: Any) -> Lanes:
        return Lanes(self.builder, self.builder.fdiv(self.value, self._other(other)))

    def fma(self, factor: Any, plus: Any) -> Lanes:
        """self * factor + plus, in one rounding where the machine can."""
        return self._call("fmuladd", self.value, self._other(factor), self._other(plus))

    def magnitude(self) -> Lanes:
        return self._call("fabs", self.value)

    def choose(self, test: str, than: Any, yes: Any, no: Any) -> Lanes:
        """`yes` in the lanes where self `test` than; a NaN answers no."""
        mask = self.builder.fcmp_ordered(test, self.value, self._other(than))
        return Lanes(self.builder, self.builder.select(mask, self._other(yes), self._other(no)))

    def polynomial(self, coefficients: tuple[float, ...]) -> Lanes:
        total = self.of(coefficients[-1])
        for coefficient in coefficients[-2::-1]:
            total = total.fma(self, coefficient)
        return total


def shuffle(builder: Any, first: Any, second: Any, lanes: list[int]) -> Any:
    mask = ir.Constant(ir.VectorType(I32, len(lanes)), lanes)
    return builder.shuffle_vector(first, second, mask)


def spread(builder: Any, value: Any) -> Any:
    nothing = ir.Constant(ir.VectorType(value.type, LANES), ir.Undefined)
    single = builder.insert_element(nothing, value, ir.Constant(I32, 0))
    return shuffle(builder, single, nothing, [0] * LANES)


def concatenate(builder: Any, parts: list[Any]) -> Any:
    while len(parts) > 1:
        lanes = list(range(2 * parts[0].type.count))
        parts = [
            shuffle(builder, a, b, lanes) for a, b in zip(parts[::2], parts[1::2], strict=True)
        ]
    return parts[0]
