"""Fewer operators that compute the same: norms, residual sums and activations into the operator before them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from headgate.exporting.fold import absorb_affine
from headgate.exporting.plan import Activate, AdaptiveAvgPool, Add, Affine, Conv, GatedConv, Operator, Plan


def fuse(plan: Plan) -> Plan:
    """Drop what nothing reads, fuse what can be, and number the values in the order in which they are written.

    An operator takes over the one behind it where nothing else reads its result. Of the two sides of a sum the later
    convolution takes it, at the sum's place, where the other side is ready whatever the order was.
    """
    plan = _live(_without_idle_pools(plan))
    readers = Counter(value for operator in plan.operators for value in operator.inputs)
    readers[plan.output] += 1
    done: dict[int, Operator] = {}  # by the value that it writes, in order
    for operator in plan.operators:
        own = [done[value] for value in operator.inputs if value in done and readers[value] == 1]
        fused = operator
        taken: Operator | None = None
        if isinstance(operator, Affine) and operator.activation == "none":
            taken = end = _open_end(own)
            fused = absorb_affine(end, operator) if end is not None else operator
        elif isinstance(operator, Add):
            taken = _open_end([o for o in own if not isinstance(o, Affine)])
            fused = _with_residual(taken, operator) if taken is not None else operator
        elif isinstance(operator, Activate) and own:
            fused = _activated(own[0], operator)
            taken = own[0] if fused is not operator else None
        if taken is not None:
            del done[taken.output]
        done[fused.output] = fused
    return _renumbered(replace(plan, operators=tuple(done.values())))


def _without_idle_pools(plan: Plan) -> Plan:
    """Without adaptive pools that keep the size: every window is one pixel. A plan of nothing else keeps its last."""
    same: dict[int, int] = {}
    kept = []
    for operator in plan.operators:
        inputs = tuple(same.get(value, value) for value in operator.inputs)
        idle = isinstance(operator, AdaptiveAvgPool) and plan.values[inputs[0]] == plan.values[operator.output]
        if idle and (inputs[0], operator.output) != (plan.input, plan.output):
            same[operator.output] = inputs[0]
        else:
            kept.append(replace(operator, inputs=inputs))
    return replace(plan, operators=tuple(kept), output=same.get(plan.output, plan.output))


def _live(plan: Plan) -> Plan:
    needed, kept = {plan.output}, []
    for operator in reversed(plan.operators):
        if operator.output in needed:
            needed |= set(operator.inputs)
            kept.append(operator)
    return replace(plan, operators=tuple(reversed(kept)))


def _open_end(operators: list[Operator]) -> Conv | GatedConv | Affine | None:
    """The last operator that can take over what comes next: without a residual and an activation."""
    free = [
        o
        for o in operators
        if isinstance(o, (Conv, GatedConv, Affine)) and len(o.inputs) == 1 and o.activation == "none"
    ]
    return max(free, key=lambda operator: operator.output, default=None)


def _with_residual(operator: Operator, add: Add) -> Operator:
    residual = add.inputs[1] if add.inputs[0] == operator.output else add.inputs[0]
    inputs = (operator.inputs[0], residual)
    return replace(operator, inputs=inputs, output=add.output, fused=(*operator.fused, *add.fused, "residual"))


def _activated(operator: Operator, behind: Activate) -> Operator:
    if isinstance(operator, (Conv, GatedConv, Affine, Add)) and operator.activation == "none":
        fused = (*operator.fused, behind.activation)
        return replace(operator, activation=behind.activation, output=behind.output, fused=fused)
    return behind


def _renumbered(plan: Plan) -> Plan:
    ids = {plan.input: 0} | {operator.output: i for i, operator in enumerate(plan.operators, 1)}
    operators = tuple(
        replace(operator, inputs=tuple(ids[value] for value in operator.inputs), output=ids[operator.output])
        for operator in plan.operators
    )
    values = tuple(plan.values[value] for value in ids)
    return replace(plan, values=values, input=0, output=ids[plan.output], operators=operators)
