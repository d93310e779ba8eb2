"""Sixteen float32 numbers as one value of compiled (numba) code: one number per SIMD lane.

numba has no vector type; this gives it one, so that an inner loop over lanes never depends on the
compiler's vectoriser. A vector lives in registers: one with AVX-512, two with AVX2, four with SSE
or NEON. Row r of a flat float32 array is its elements [16 r, 16 r + 16). Needs numba.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, register_model

LANES = 16
_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_INTS = ir.VectorType(ir.IntType(32), LANES)


class _Floats(types.Type):
    def __init__(self) -> None:
        super().__init__(name="Floats16")


class _Ints(types.Type):
    def __init__(self) -> None:
        super().__init__(name="Ints16")


floats, ints = _Floats(), _Ints()


@register_model(_Floats)
class _FloatsModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _FLOATS)


@register_model(_Ints)
class _IntsModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _INTS)


def _row_pointer(context: Any, builder: Any, array_type: Any, array: Any, row: Any, to: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    element = builder.gep(data, [builder.mul(row, row.type(LANES))])
    return builder.bitcast(element, to.as_pointer())


@intrinsic
def load(typing: Any, array: Any, row: Any) -> Any:
    """Row of a flat float32 array; no bounds are checked."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array, row = args
        pointer = _row_pointer(context, builder, signature.args[0], array, row, _FLOATS)
        return builder.load(pointer, align=4)

    return floats(array, types.intp), generate


@intrinsic
def store(typing: Any, array: Any, row: Any, value: Any) -> Any:
    """Writes floats to a row of a flat float32 array, or ints to one of int32."""
    to = _FLOATS if value == floats else _INTS

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array, row, value = args
        pointer = _row_pointer(context, builder, signature.args[0], array, row, to)
        builder.store(value, pointer, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, value), generate


def _elementwise(name: str, build: Callable[[Any, Any, Any], Any]) -> Any:
    def function(typing: Any, first: Any, second: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return build(builder, *args)

        return floats(floats, floats), generate

    function.__name__ = function.__qualname__ = name
    return intrinsic(function)


add = _elementwise("add", lambda builder, a, b: builder.fadd(a, b))
subtract = _elementwise("subtract", lambda builder, a, b: builder.fsub(a, b))
multiply = _elementwise("multiply", lambda builder, a, b: builder.fmul(a, b))
maximum = _elementwise(
    "maximum", lambda builder, a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b)
)
minimum = _elementwise(
    "minimum", lambda builder, a, b: builder.select(builder.fcmp_ordered("<", a, b), a, b)
)


@intrinsic
def absolute(typing: Any, value: Any) -> Any:
    """|value|."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bits = builder.bitcast(args[0], _INTS)
        without_sign = builder.and_(bits, ir.Constant(_INTS, [0x7FFFFFFF] * LANES))
        return builder.bitcast(without_sign, _FLOATS)

    return floats(floats), generate


def _splat(builder: Any, value: Any, to: Any) -> Any:
    one = builder.insert_element(ir.Constant(to, ir.Undefined), value, ir.IntType(32)(0))
    mask = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(one, ir.Constant(to, ir.Undefined), mask)


@intrinsic
def constant(typing: Any, value: Any) -> Any:
    """A float32 in every lane."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _splat(builder, args[0], _FLOATS)

    return floats(types.float32), generate


@intrinsic
def integer(typing: Any, value: Any) -> Any:
    """An int32 in every lane."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _splat(builder, args[0], _INTS)

    return ints(types.int32), generate


@intrinsic
def where_greater(typing: Any, first: Any, second: Any, yes: Any, no: Any) -> Any:
    """Ints: `yes` in lanes where `first > second`, else `no`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        a, b, yes, no = args
        return builder.select(builder.fcmp_ordered(">", a, b), yes, no)

    return ints(floats, floats, ints, ints), generate
