"""Which convolutions are computed in narrow numbers: docs/design/0003-int8.md and docs/design/0005-bfloat16.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final, Literal

from headgate.exporting.int8 import Range
from headgate.exporting.plan import Conv, GatedConv, Operator, Plan

Precision = Literal["float32", "int8", "bfloat16"]

MOST_INT8_PRODUCTS: Final = 65536
"""Summed for one output; 32 bits hold no more products of two bytes."""


def with_int8(plan: Plan, ranges: Mapping[str, Range]) -> Plan:
    """The plan with its convolutions in 8-bit integers, all but those that `kept_float32` names."""

    def attributes(operator: Operator) -> dict[str, Any]:
        scale, zero = ranges[operator.name].quantisation()
        return {"input_scale": scale, "input_zero": zero}

    return _narrowed(plan, "int8", attributes)


def with_bfloat16(plan: Plan) -> Plan:
    """The plan with its convolutions in bfloat16, all but those that `kept_float32` names."""
    return _narrowed(plan, "bfloat16", lambda _: {"precision": "bfloat16"})


def _narrowed(plan: Plan, precision: Precision, attributes: Callable[[Operator], dict[str, Any]]) -> Plan:
    return replace(
        plan,
        operators=tuple(
            replace(operator, **attributes(operator)) if kept_float32(operator, plan, precision) is None else operator
            for operator in plan.operators
        ),
    )


def precision_of(operator: Conv | GatedConv) -> Precision:
    """What a convolution's inputs and weights are rounded to."""
    if operator.input_scale is not None:
        return "int8"
    return "float32" if operator.precision is None else operator.precision


def kept_float32(operator: Operator, plan: Plan, precision: Precision) -> str | None:
    """Why a convolution stays in float32 in a plan of `precision`, or None."""
    if not isinstance(operator, (Conv, GatedConv)):
        return "no convolution"
    last = max(i for i, o in enumerate(plan.operators) if isinstance(o, (Conv, GatedConv)))
    if operator.inputs[0] == plan.input:
        return "reads the images"
    if operator is plan.operators[last]:
        return "last layer"
    if precision == "int8" and operator.weight[0].numel() > MOST_INT8_PRODUCTS:
        return f"more than {MOST_INT8_PRODUCTS} products to a sum"
    if isinstance(operator, Conv) and operator.groups == len(operator.weight) > 1:
        return "depthwise"
    if isinstance(operator, GatedConv) and operator.granularity == "channel":
        return "decides by channels"
    if isinstance(operator, GatedConv) and operator.channel_bound > 0:
        return "channel_bound"
    return None
