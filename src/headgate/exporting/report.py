"""What an export did, operator by operator."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from headgate.exporting.plan import Conv, GatedConv, Operator, Plan, Shape
from headgate.exporting.precision import kept_float32, precision_of


@dataclass(frozen=True, kw_only=True)
class OperatorReport:
    """One operator of a plan.

    Attributes:
        name: the module's path in the model; for a function, its caller's and the graph node's name.
        kind: as the plan format calls it.
        size: of a convolution or pool, for example "64→128 3×3 /2"; else empty.
        out_shape: (channels, height, width) of its result.
        gate: of a gated convolution, for example "group G=4"; "dense" for other convolutions; else empty.
        precision: of a convolution: "float32", "int8" or "bfloat16"; "float32" is followed by why where others are
            narrower; else empty.
        fused: what it stands for beside its own layer: "norm", "residual", an activation, …
        macs: per image, with every gate open.
        base_macs: of these, what runs whatever the gates decide.
        weight_bytes: of all its tensors; those that it shares with another operator are in the file once.
    """

    name: str
    kind: str
    size: str
    out_shape: Shape
    gate: str
    precision: str
    fused: tuple[str, ...]
    macs: int
    base_macs: int
    weight_bytes: int


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What `export` wrote. `print(report)` shows a table.

    Attributes:
        model: class name of the model.
        path: of the plan file.
        in_shape, out_shape: (channels, height, width) of the plan's input and output.
        operators: in order of execution.
        vanished: names of layers that do nothing in evaluation, such as dropout.
        bytes: of the file.
    """

    model: str
    path: str
    in_shape: Shape
    out_shape: Shape
    operators: tuple[OperatorReport, ...]
    vanished: tuple[str, ...]
    bytes: int

    @property
    def gated(self) -> tuple[OperatorReport, ...]:
        """The gated convolutions."""
        return tuple(operator for operator in self.operators if operator.kind == GatedConv.kind)

    @property
    def dense(self) -> tuple[OperatorReport, ...]:
        """The other convolutions, linear layers among them."""
        return tuple(operator for operator in self.operators if operator.kind == Conv.kind)

    @property
    def macs(self) -> int:
        """Multiply-accumulates per image, with every gate open."""
        return sum(operator.macs for operator in self.operators)

    @property
    def base_macs(self) -> int:
        """Multiply-accumulates per image that run whatever the gates decide."""
        return sum(operator.base_macs for operator in self.operators)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, for JSON."""
        return dataclasses.asdict(self) | {"macs": self.macs, "base_macs": self.base_macs}

    def __str__(self) -> str:
        head = (
            f"{self.model} → {self.path}: {len(self.operators)} operators, {len(self.gated)} gated and "
            f"{len(self.dense)} dense convolutions"
        )
        titles = ("operator", "kind", "size", "output", "gate", "precision", "fused", "MACs", "bytes")
        rows = [titles] + [
            (
                x.name,
                x.kind,
                x.size,
                "×".join(map(str, x.out_shape)),
                x.gate,
                x.precision,
                ", ".join(x.fused),
                _short(x.macs) if x.macs else "",
                _short(x.weight_bytes) if x.weight_bytes else "",
            )
            for x in self.operators
        ]
        widths = [max(len(row[i]) for row in rows) for i in range(len(titles))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        total = f"{_short(self.macs)} MACs per image"
        if self.gated:
            total += f", {_short(self.macs - self.base_macs)} of them behind gates"
        lines.append(f"{total}; {_short(self.bytes)}B")
        if self.vanished:
            lines.append(f"nothing to do in evaluation: {', '.join(self.vanished)}")
        return "\n".join([head, *lines])


def report(plan: Plan, *, model: str, path: str, size: int) -> ExportReport:
    """What a plan file of `size` bytes holds."""
    return ExportReport(
        model=model,
        path=path,
        in_shape=plan.values[plan.input],
        out_shape=plan.values[plan.output],
        operators=tuple(_operator(operator, plan) for operator in plan.operators),
        vanished=plan.vanished,
        bytes=size,
    )


def macs_of(operator: Operator, plan: Plan) -> int:
    """Multiply-accumulates of one image, with every gate open."""
    if not isinstance(operator, (Conv, GatedConv)):
        return 0
    _, height, width = plan.values[operator.output]
    return height * width * operator.weight.numel()


def _operator(operator: Operator, plan: Plan) -> OperatorReport:
    out_shape = plan.values[operator.output]
    tensors = [value for value in vars(operator).values() if isinstance(value, Tensor)]
    macs = base_macs = macs_of(operator, plan)
    gate = ""
    if isinstance(operator, Conv):
        gate = "dense"
    elif isinstance(operator, GatedConv):
        base, inputs = operator.base_inputs.shape[1], operator.weight.shape[1]
        base_macs = macs * base // inputs
        gate = f"{operator.granularity} G={inputs // base}"
    return OperatorReport(
        name=operator.name,
        kind=operator.kind,
        size=_size(operator, plan.values[operator.inputs[0]], out_shape),
        out_shape=out_shape,
        gate=gate,
        precision=_precision(operator, plan),
        fused=operator.fused,
        macs=macs,
        base_macs=base_macs,
        weight_bytes=4 * sum(tensor.numel() for tensor in tensors),
    )


def _precision(operator: Operator, plan: Plan) -> str:
    if not isinstance(operator, (Conv, GatedConv)):
        return ""
    found = precision_of(operator)
    narrow = {precision_of(o) for o in plan.operators if isinstance(o, (Conv, GatedConv))} - {"float32"}
    if found != "float32" or not narrow:
        return found
    return f"float32: {kept_float32(operator, plan, *narrow)}"


def _size(operator: Operator, in_shape: Shape, out_shape: Shape) -> str:
    if isinstance(operator, (Conv, GatedConv)):
        kernel = (operator.weight.shape[2], operator.weight.shape[3])
    else:
        kernel = getattr(operator, "kernel", (0, 0))
    if not kernel[0]:
        return ""
    stride: tuple[int, int] = vars(operator)["stride"]
    groups = getattr(operator, "groups", 1)
    channels = f"{in_shape[0]}→{out_shape[0]} " if isinstance(operator, (Conv, GatedConv)) else ""
    return (
        f"{channels}{kernel[0]}×{kernel[1]}"
        + ("" if stride == (1, 1) else " /" + "×".join(map(str, dict.fromkeys(stride))))
        + ("" if groups == 1 else f" g{groups}")
    )


def _short(number: int) -> str:
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number} "
