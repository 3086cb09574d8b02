"""Runs plan files in plain torch, straight from docs/design/0002-plan-and-engine.md and with no code of headgate's.

The oracle for the exporter and for the native engine: slow, in float64 by default.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import safetensors
import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": lambda x: x.clamp(min=0),
    "relu6": lambda x: x.clamp(0, 6),
    "hardswish": lambda x: x * (x + 3).clamp(0, 6) / 6,
    "hardsigmoid": lambda x: (x + 3).clamp(0, 6) / 6,
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "sigmoid": lambda x: 1 / (1 + torch.exp(-x)),
    "tanh": torch.tanh,
}

ATTRIBUTES: dict[str, set[str]] = {
    "conv": {"weight", "bias", "groups", "stride", "padding", "dilation", "activation"},
    "gated_conv": {
        *("weight", "base_inputs", "stride", "padding", "dilation", "granularity", "decisions", "two_sided"),
        *("channel_bound", "threshold", "score_scale", "score_bias", "partial_scale", "partial_bias"),
        *("final_scale", "final_bias", "activation"),
    },
    "max_pool": {"kernel", "stride", "padding", "dilation"},
    "avg_pool": {"kernel", "stride", "padding", "count_include_pad"},
    "adaptive_avg_pool": set(),
    "add": {"activation"},
    "mul": set(),
    "concat": set(),
    "affine": {"scale", "bias", "activation"},
    "activation": {"activation"},
}
INT8 = {"input_scale", "input_zero"}
OPTIONAL = {
    "conv": {"input_channels", "precision", *INT8},
    "gated_conv": {"center", "group_scale", "precision", *INT8},
}


@dataclass
class Gate:
    """What one gated convolution decided. Maps are (n, decisions, h, w), or 1×1 for granularity "channel".

    Attributes:
        partial_sum, final_sum: (n, o, h, w) P and F, without bias.
        normalised: (n, o, h, w) n.
        margin: score − threshold − shift.
        own: the decisions that it came to, after the channel bound.
        decision: those that it used: `own`, or the injected ones.
    """

    partial_sum: Tensor
    final_sum: Tensor
    normalised: Tensor
    margin: Tensor
    own: Tensor
    decision: Tensor


@dataclass
class Run:
    """Attributes: output: (n, c, h, w). values: by id. gates: of each gated convolution, by the operator's name."""

    output: Tensor
    values: dict[int, Tensor] = field(default_factory=dict)
    gates: dict[str, Gate] = field(default_factory=dict)


class PlanInterpreter:
    """One plan file. Fails with an AssertionError where the file is not as the format says.

    Attributes: plan: the JSON. tensors: by name, as stored.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        with safetensors.safe_open(os.fspath(path), framework="pt") as file:
            metadata = file.metadata()
            self.tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        assert set(metadata) == {"headgate.plan"}
        self.plan: dict[str, Any] = json.loads(metadata["headgate.plan"])
        assert list(self.plan) == ["version", "producer", "values", "input", "output", "ops"]
        assert self.plan["version"] == 1
        self.shapes = [tuple(value["shape"]) for value in self.plan["values"]]
        self.ops: list[dict[str, Any]] = self.plan["ops"]
        self._check()

    def _check(self) -> None:
        written, used = {self.plan["input"]}, set()
        for op in self.ops:
            attributes = set(op) - {"kind", "name", "inputs", "output"}
            required, optional = ATTRIBUTES[op["kind"]], OPTIONAL.get(op["kind"], set())
            assert required <= attributes <= required | optional, (op["name"], attributes)
            assert set(op["inputs"]) <= written, f"{op['name']} reads what is not written yet"
            assert op["output"] not in written, f"{op['name']} writes a value again"
            assert op.get("activation", "none") in ACTIVATIONS
            assert attributes & {"precision", *INT8} in (set(), {"precision"}, INT8), op["name"]
            assert op.get("precision", "bfloat16") == "bfloat16"
            written.add(op["output"])
            used |= {value for value in op.values() if isinstance(value, str) and value in self.tensors}
        assert written == set(range(len(self.shapes)))
        assert self.plan["output"] in written
        assert used == set(self.tensors), "every tensor is used"
        assert all(tensor.dtype in (torch.float32, torch.int32) for tensor in self.tensors.values())
        assert len({op["name"] for op in self.ops}) == len(self.ops)

    def run(
        self,
        x: Tensor,
        *,
        dtype: torch.dtype = torch.float64,
        decisions: Mapping[str, Tensor] | None = None,
        shift: float = 0.0,
    ) -> Run:
        """Run a batch (n, c, h, w).

        Args:
            decisions: use these, by the operator's name, in place of the operators' own, for some or all of them.
            shift: the run-time dial.
        """
        self.dtype, self.shift, self.injected = dtype, shift, decisions or {}
        values: dict[int, Tensor] = {self.plan["input"]: x.to(dtype)}
        run = Run(x, values)
        assert tuple(x.shape[1:]) == self.shapes[self.plan["input"]]
        for op in self.ops:
            inputs = [values[i] for i in op["inputs"]]
            result = getattr(self, f"_{op['kind']}")(op, inputs, run)
            result = ACTIVATIONS[op.get("activation", "none")](result)
            expected = (len(x), *self.shapes[op["output"]])
            assert tuple(result.shape) == expected, f"{op['name']}: {tuple(result.shape)} is not {expected}"
            values[op["output"]] = result
        run.output = values[self.plan["output"]]
        return run

    def _tensor(self, op: dict[str, Any], name: str, *shape: int) -> Tensor:
        tensor = self.tensors[op[name]]
        assert not shape or tensor.shape == shape, f"{op['name']}.{name}: {tuple(tensor.shape)} is not {shape}"
        return tensor.to(self.dtype) if tensor.dtype == torch.float32 else tensor.long()

    def _vector(self, op: dict[str, Any], name: str, length: int) -> Tensor:
        return self._tensor(op, name, length).view(1, -1, 1, 1)

    # ---------------------------------------------------------------------------------------------------- convolutions

    def _convolve(self, op: dict[str, Any], x: Tensor, weight: Tensor, groups: int = 1) -> Tensor:
        return F.conv2d(x, weight, None, op["stride"], op["padding"], op["dilation"], groups)

    def _rounded(self, op: dict[str, Any], x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor | float]:
        """Input, weight, and what a unit of their sums stands for: both rounded where the operator has narrow numbers.

        8-bit integers come in float64, which holds their sums exactly. docs/design/0003-int8.md and 0005-bfloat16.md
        say how numbers are rounded.
        """
        if "precision" in op:
            return x.bfloat16().to(self.dtype), weight.bfloat16().to(self.dtype), 1.0
        if "input_scale" not in op:
            return x, weight, 1.0
        scale, zero = op["input_scale"], op["input_zero"]
        assert scale > 0
        assert zero in range(256)
        inverse = torch.tensor(1.0) / torch.tensor(scale)
        x = (x.float() * inverse).clamp(-zero, 255 - zero).round().double()
        largest = weight.abs().amax((1, 2, 3)).double()
        unit = torch.where(largest == 0, 1.0, largest / 127)
        weight = (weight.double() / unit.view(-1, 1, 1, 1)).round()
        assert weight.abs().max() <= 127
        return x, weight, scale * unit.view(1, -1, 1, 1)

    def _conv(self, op: dict[str, Any], inputs: list[Tensor], run: Run) -> Tensor:
        x, weight, groups = inputs[0], self._tensor(op, "weight"), op["groups"]
        outputs, per_group = weight.shape[:2]
        assert outputs % groups == 0
        if "input_channels" in op:
            x = x[:, self._tensor(op, "input_channels", groups, per_group).flatten()]
        assert x.shape[1] == groups * per_group
        x, weight, unit = self._rounded(op, x, weight)
        y = (self._convolve(op, x, weight, groups) * unit).to(self.dtype) + self._vector(op, "bias", outputs)
        return y if len(inputs) == 1 else y + inputs[1]

    def _gated_conv(self, op: dict[str, Any], inputs: list[Tensor], run: Run) -> Tensor:
        x, weight = inputs[0], self._tensor(op, "weight")
        outputs = len(weight)
        base = self._tensor(op, "base_inputs")
        mask = torch.zeros(len(base), outputs // len(base), weight.shape[1], 1, 1, dtype=self.dtype)
        for block, channels in enumerate(base):
            assert len(set(channels.tolist())) == base.shape[1]
            mask[block, :, channels] = 1
        x, weight, unit = self._rounded(op, x, weight)
        mask = mask.view(outputs, -1, 1, 1).to(weight.dtype)
        final_sum = (self._convolve(op, x, weight) * unit).to(self.dtype)
        partial_sum = (self._convolve(op, x, weight * mask) * unit).to(self.dtype)
        vectors = {
            f"{name}_{part}": self._vector(op, f"{name}_{part}", outputs)
            for name in ("score", "partial", "final")
            for part in ("scale", "bias")
        }
        normalised = partial_sum * vectors["score_scale"] + vectors["score_bias"]
        margin = self._score(op, normalised) - (self._vector(op, "threshold", op["decisions"]) + self.shift)
        own = self._bounded(op, margin > 0)
        decision = self.injected.get(op["name"], own).to(torch.bool)
        assert decision.shape == own.shape
        run.gates[op["name"]] = Gate(partial_sum, final_sum, normalised, margin, own, decision)
        is_open = decision.repeat_interleave(outputs // op["decisions"], dim=1)
        final = final_sum * vectors["final_scale"] + vectors["final_bias"]
        partial = partial_sum * vectors["partial_scale"] + vectors["partial_bias"]
        y = torch.where(is_open, final, partial)
        return y if len(inputs) == 1 else y + inputs[1]

    def _score(self, op: dict[str, Any], normalised: Tensor) -> Tensor:
        n = op["center"] - normalised.abs() if op["two_sided"] else normalised
        match op["granularity"]:
            case "activation":
                assert "group_scale" not in op
                return n
            case "group":
                n = n.unflatten(1, (op["decisions"], -1)).mean(2)
            case "channel":
                n = n.mean((2, 3), keepdim=True)
            case other:
                raise AssertionError(f"{op['name']}: granularity {other}")
        return n * self._vector(op, "group_scale", op["decisions"])

    @staticmethod
    def _bounded(op: dict[str, Any], decision: Tensor) -> Tensor:
        if op["channel_bound"] == 0:
            return decision
        assert op["granularity"] != "channel"
        pixels = decision.shape[2] * decision.shape[3]
        return decision & (decision.sum((2, 3), keepdim=True) > op["channel_bound"] * pixels)

    # ---------------------------------------------------------------------------------------------------------- pools

    def _taps(self, op: dict[str, Any], x: Tensor, dilation: list[int], fill: float) -> Tensor:
        """(taps, n, c, h, w): what each tap of each window sees, `fill` outside the map."""
        (kh, kw), (sh, sw), (ph, pw), (dh, dw) = op["kernel"], op["stride"], op["padding"], dilation
        _, height, width = self.shapes[op["output"]]
        reach = ((height - 1) * sh + dh * (kh - 1) + 1, (width - 1) * sw + dw * (kw - 1) + 1)
        below, right = (max(0, r - p - s) for r, p, s in zip(reach, (ph, pw), x.shape[2:], strict=True))
        padded = F.pad(x, (pw, right, ph, below), value=fill)
        return torch.stack(
            [
                padded[:, :, i * dh : i * dh + (height - 1) * sh + 1 : sh, j * dw : j * dw + (width - 1) * sw + 1 : sw]
                for i in range(kh)
                for j in range(kw)
            ]
        )

    def _max_pool(self, op: dict[str, Any], inputs: list[Tensor], run: Run) -> Tensor:
        return self._taps(op, inputs[0], op["dilation"], float("-inf")).amax(0)

    def _avg_pool(self, op: dict[str, Any], inputs: list[Tensor], run: Run) -> Tensor:
        counted = torch.ones_like(inputs[0][:1, :1])
        if op["count_include_pad"]:
            ph, pw = op["padding"]
            counted = F.pad(counted, (pw, pw, ph, ph), value=1.0)
            counted = self._taps(op | {"padding": [0, 0]}, counted, [1, 1], 0.0).sum(0)
        else:
            counted = self._taps(op, counted, [1, 1], 0.0).sum(0)
        return self._taps(op, inputs[0], [1, 1], 0.0).sum(0) / counted

    def _adaptive_avg_pool(self, op: dict[str, Any], inputs: list[Tensor], run: Run) -> Tensor:
        (x,), (_, rows, columns) = inputs, self.shapes[op["output"]]
        height, width = x.shape[2:]

        def span(i: int, size: int, count: int) -> slice:
            return slice(i * size // count, -(-(i + 1) * size // count))

        y = x.new_zeros(*x.shape[:2], rows, columns)
        for i in range(rows):
            for j in range(columns):
                y[:, :, i, j] = x[:, :, span(i, height, rows), span(j, width, columns)].mean((2, 3))
        return y

    # ---------------------------------------------------------------------------------------------------- elementwise

    def _add(self, op: dict[str, Any], inputs: list[Tensor], run: Run) -> Tensor:
        assert inputs[0].shape == inputs[1].shape
        return inputs[0] + inputs[1]

    def _mul(self, op: dict[str, Any], inputs: list[Tensor], run: Run) -> Tensor:
        assert inputs[1].shape[2:] in ((1, 1), inputs[0].shape[2:])
        return inputs[0] * inputs[1]

    def _concat(self, op: dict[str, Any], inputs: list[Tensor], run: Run) -> Tensor:
        return torch.cat(inputs, 1)

    def _affine(self, op: dict[str, Any], inputs: list[Tensor], run: Run) -> Tensor:
        channels = inputs[0].shape[1]
        return inputs[0] * self._vector(op, "scale", channels) + self._vector(op, "bias", channels)

    def _activation(self, op: dict[str, Any], inputs: list[Tensor], run: Run) -> Tensor:
        return inputs[0]
