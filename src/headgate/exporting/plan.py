"""What a plan file says, typed, written and read. The format: docs/design/0002-plan-and-engine.md."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Final, Literal

import safetensors
import safetensors.torch
import torch
from jaxtyping import Float, Int32
from torch import Tensor

from headgate.errors import ExportError, PlanError
from headgate.files import write_atomic

VERSION: Final = 1
KEY: Final = "headgate.plan"
"""Of the JSON text in the file's metadata: the only key, as safetensors does not keep the order of several."""

Pair = tuple[int, int]
"""(height, width)."""
Shape = tuple[int, int, int]
"""(channels, height, width) of a map."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Operator:
    """One operator of a plan. Fields of the kinds below are the format's attributes; None is left out of the file.

    Attributes:
        kind: as the format calls it.
        name: path of the module in the model, or of the module that calls a function and the node's name.
        inputs, output: ids of values.
        fused: what of the model this operator stands for beside its own layer; for the report, not in the file.
    """

    kind: ClassVar[str]
    name: str
    inputs: tuple[int, ...]
    output: int
    fused: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Conv(Operator):
    """act( conv + bias (+ input 1) ). Affine vectors and biases are float64 until they are written, here and below.

    Computed in 8-bit integers where `input_scale` and `input_zero` are not None, in `precision` where that is not, also
    below.
    """

    kind = "conv"
    weight: Float[Tensor, "o k kh kw"]
    bias: Float[Tensor, " o"]
    groups: int = 1
    input_channels: Int32[Tensor, "groups k"] | None = None
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    activation: str = "none"
    input_scale: float | None = None
    input_zero: int | None = None
    precision: Literal["bfloat16"] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class GatedConv(Operator):
    """A convolution of which each output, or each group's or map's outputs, are completed where the decision says."""

    kind = "gated_conv"
    weight: Float[Tensor, "o i kh kw"]
    base_inputs: Int32[Tensor, "b k"]
    stride: Pair
    padding: Pair
    dilation: Pair
    granularity: str
    decisions: int
    two_sided: bool
    center: float | None = None
    channel_bound: float
    threshold: Float[Tensor, " decisions"]
    group_scale: Float[Tensor, " decisions"] | None = None
    score_scale: Float[Tensor, " o"]
    score_bias: Float[Tensor, " o"]
    partial_scale: Float[Tensor, " o"]
    partial_bias: Float[Tensor, " o"]
    final_scale: Float[Tensor, " o"]
    final_bias: Float[Tensor, " o"]
    activation: str = "none"
    input_scale: float | None = None
    input_zero: int | None = None
    precision: Literal["bfloat16"] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class MaxPool(Operator):
    """Padding never wins."""

    kind = "max_pool"
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair


@dataclass(frozen=True, kw_only=True, eq=False)
class AvgPool(Operator):
    """Mean of the window."""

    kind = "avg_pool"
    kernel: Pair
    stride: Pair
    padding: Pair
    count_include_pad: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class AdaptiveAvgPool(Operator):
    """torch's windows; the output's shape says how many."""

    kind = "adaptive_avg_pool"


@dataclass(frozen=True, kw_only=True, eq=False)
class Add(Operator):
    """act( input 0 + input 1 )."""

    kind = "add"
    activation: str = "none"


@dataclass(frozen=True, kw_only=True, eq=False)
class Mul(Operator):
    """input 0 · input 1, the second of which may be 1×1."""

    kind = "mul"


@dataclass(frozen=True, kw_only=True, eq=False)
class Concat(Operator):
    """The channels of all inputs in order."""

    kind = "concat"


@dataclass(frozen=True, kw_only=True, eq=False)
class Affine(Operator):
    """act( input · scale + bias ): a norm that nothing could absorb."""

    kind = "affine"
    scale: Float[Tensor, " c"]
    bias: Float[Tensor, " c"]
    activation: str = "none"


@dataclass(frozen=True, kw_only=True, eq=False)
class Activate(Operator):
    """act( input )."""

    kind = "activation"
    activation: str


KINDS: Final[Mapping[str, type[Operator]]] = {
    kind.kind: kind for kind in (Conv, GatedConv, MaxPool, AvgPool, AdaptiveAvgPool, Add, Mul, Concat, Affine, Activate)
}
_WORDS: Final = ("kind", "name", "granularity", "activation", "precision")
"""Attributes that are words; other strings name tensors of the file."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """A whole network.

    Attributes:
        values: shape of each value.
        input, output: ids of values.
        operators: in order of execution.
        vanished: names of what does nothing in evaluation (dropout); for the report.
    """

    values: tuple[Shape, ...]
    input: int
    output: int
    operators: tuple[Operator, ...]
    vanished: tuple[str, ...] = ()


class _Store:
    """The file's tensors, each content once, under the first name that asked for it."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.names: dict[tuple[object, ...], str] = {}

    def put(self, name: str, value: Tensor) -> str:
        """Store `value` as little-endian F32 or I32 and return the name it has."""
        dtype = torch.float32 if value.is_floating_point() else torch.int32
        stored = value.detach().to("cpu", dtype).contiguous()
        if not stored.isfinite().all():
            raise ExportError(
                f"cannot export {name!r}: expected finite numbers, got nan or inf in float32; train anew, or mend the "
                "weights and running statistics of that layer"
            )
        content = (tuple(stored.shape), dtype, hashlib.sha256(stored.numpy().data).digest())
        if content not in self.names:
            self.names[content] = name
            self.tensors[name] = stored
        return self.names[content]


def _describe(operator: Operator, store: _Store) -> dict[str, Any]:
    described: dict[str, Any] = {"kind": operator.kind}
    for field in fields(operator):
        value = getattr(operator, field.name)
        if value is None or field.name == "fused":
            continue
        if isinstance(value, Tensor):
            value = store.put(f"{operator.name}.{field.name}", value)
        described[field.name] = list(value) if isinstance(value, tuple) else value
    return described


def _producer() -> str:
    try:
        return f"headgate {importlib.metadata.version('headgate')}"
    except importlib.metadata.PackageNotFoundError:
        return "headgate"


def serialise(plan: Plan) -> tuple[str, Mapping[str, Tensor]]:
    """The JSON text and the tensors of a plan's file; the same for the same plan.

    Raises: ExportError: a weight is not finite.
    """
    store = _Store()
    description = {
        "version": VERSION,
        "producer": _producer(),
        "values": [{"shape": list(shape)} for shape in plan.values],
        "input": plan.input,
        "output": plan.output,
        "ops": [_describe(operator, store) for operator in plan.operators],
    }
    return json.dumps(description, ensure_ascii=False, allow_nan=False, separators=(",", ":")), store.tensors


def write(plan: Plan, path: str | os.PathLike[str]) -> int:
    """Write the file, whole or not at all, and return its size in bytes.

    Raises:
        ExportError: a weight is not finite.
        CheckpointError: the file cannot be written; an earlier one is unchanged.
    """
    text, tensors = serialise(plan)
    data = safetensors.torch.save(dict(tensors), {KEY: text})
    write_atomic(path, data)
    return len(data)


def read(path: str | os.PathLike[str]) -> Plan:
    """The plan that a file holds: the inverse of `write`, but for what is only for the report.

    Attributes are taken as they are: the native engine checks them against one another when it loads the file.

    Raises: PlanError: the file cannot be read, or is not a plan of this version.
    """
    try:
        with safetensors.safe_open(os.fspath(path), "pt") as file:
            description = json.loads((file.metadata() or {})[KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if description["version"] != VERSION:
            raise ValueError(f"version {description['version']}")
        return Plan(
            values=tuple(tuple(value["shape"]) for value in description["values"]),
            input=description["input"],
            output=description["output"],
            operators=tuple(_operator(described, tensors) for described in description["ops"]),
        )
    except (OSError, safetensors.SafetensorError, LookupError, TypeError, ValueError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise PlanError(f"{os.fspath(path)} must be a plan file of version {VERSION}, got {problem}") from error


def _operator(described: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Operator:
    attributes: dict[str, Any] = {}
    for name, value in described.items():
        stored = tensors[value] if isinstance(value, str) and name not in _WORDS else value
        attributes[name] = tuple(stored) if isinstance(stored, list) else stored
    return KINDS[attributes.pop("kind")](**attributes)
