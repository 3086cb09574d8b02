"""A plan without gates as a torch network of plain layers that any library can run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import add, iadd, mul
from typing import Any, Final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int32, Int64
from torch import Tensor, fx, nn

from headgate.benchmarking.plain import ChannelShuffle
from headgate.errors import ModelError
from headgate.exporting.plan import (
    Activate,
    AdaptiveAvgPool,
    Add,
    Affine,
    AvgPool,
    Concat,
    Conv,
    MaxPool,
    Mul,
    Operator,
    Pair,
    Plan,
)
from headgate.nn.selection import shuffle_permutation

__all__ = ["layer_of", "rebuild"]

ACTIVATIONS: Final[Mapping[str, Callable[..., Any]]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}
NEVER_IN_PLACE: Final = ("sigmoid", "tanh")


class ChannelSelection(nn.Module):
    """The channels of a list, in its order."""

    channels: Tensor

    def __init__(self, channels: Int64[Tensor, " k"]) -> None:
        super().__init__()
        self.register_buffer("channels", channels)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k h w"]:
        """Select."""
        return torch.index_select(x, 1, self.channels)


def rebuild(plan: Plan) -> nn.Module:
    """The network as a user would write it: linear layers are such, what nobody else reads is overwritten.

    A graph rather than a loop over operators, so that a map is freed once it was read for the last time.

    Args:
        plan: without gated convolutions; see `headgate.exporting.static`.
    Returns: in evaluation mode and float32, from (n, c, h, w) to what the engine returns: (n, c) where the output is
        1×1. `layer_of` finds an operator's layer.
    Raises: ModelError: an operator that torch has not.
    """
    builder = _Builder(plan)
    for operator in plan.operators:
        builder.add(operator)
    return builder.network()


def layer_of(network: nn.Module, operator: Operator) -> nn.Module:
    """What computes a convolution, pool or affine in a network that `rebuild` made."""
    return network.get_submodule(_path(operator))


def _path(operator: Operator) -> str:
    return f"layers.{operator.output}"


class _Builder:
    """Appends operators to a graph.

    Attributes:
        vectors: values that can be held as (n, c): 1×1, and read only by what can work on that, up to the output.
        flat: those that are held so.
        root: holds the layers that the graph calls.
        nodes: of the values so far.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.vectors = _vectors(plan)
        self.flat: set[int] = set()
        self.root = nn.Module()
        self.root.layers = nn.Module()
        self.graph = fx.Graph()
        self.nodes = {plan.input: self.graph.placeholder("images")}

    def add(self, operator: Operator) -> None:
        """Append one operator, all of whose inputs are there."""
        flat = operator.output in self.vectors and _works_flat(operator, self.plan)
        inputs = [self._flattened(value) if flat else self.nodes[value] for value in operator.inputs]
        node = self._computed(operator, inputs, flat)
        if flat:
            self.flat.add(operator.output)
        activation = getattr(operator, "activation", "none")
        if activation != "none":
            fresh = not isinstance(operator, Activate)
            options: dict[str, Any] = {"inplace": True} if fresh and activation not in NEVER_IN_PLACE else {}
            node = self.graph.call_function(ACTIVATIONS[activation], (node,), options)
        self.nodes[operator.output] = node

    def network(self) -> nn.Module:
        """What was appended, as a module."""
        vector = self.plan.values[self.plan.output][1:] == (1, 1)
        self.graph.output(self._flattened(self.plan.output) if vector else self.nodes[self.plan.output])
        return fx.GraphModule(self.root, self.graph, "RebuiltNetwork").eval()

    def _flattened(self, value: int) -> fx.Node:
        node = self.nodes[value]
        return node if value in self.flat else self.graph.call_function(torch.flatten, (node, 1))

    def _call(self, operator: Operator, layer: nn.Module, x: fx.Node) -> fx.Node:
        path = _path(operator)
        self.root.set_submodule(path, layer.requires_grad_(False))
        return self.graph.call_module(path, (x,))

    def _computed(self, operator: Operator, inputs: list[fx.Node], flat: bool) -> fx.Node:
        """The operator's result in front of its activation."""
        match operator:
            case Conv():
                node = self._convolved(operator, inputs[0], flat)
                return node if len(inputs) == 1 else self.graph.call_function(iadd, (node, inputs[1]))
            case MaxPool(kernel=kernel, stride=stride, padding=padding, dilation=dilation):
                ceil = self._ceil_mode(operator, kernel, stride, padding, dilation)
                return self._call(operator, nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=ceil), inputs[0])
            case AvgPool(kernel=kernel, stride=stride, padding=padding, count_include_pad=counted):
                ceil = self._ceil_mode(operator, kernel, stride, padding, (1, 1))
                return self._call(operator, nn.AvgPool2d(kernel, stride, padding, ceil, counted), inputs[0])
            case AdaptiveAvgPool():
                return self._call(operator, nn.AdaptiveAvgPool2d(self.plan.values[operator.output][1:]), inputs[0])
            case Add():
                return self.graph.call_function(add, (inputs[0], inputs[1]))
            case Mul():
                return self.graph.call_function(mul, (inputs[0], inputs[1]))
            case Concat():
                return self.graph.call_function(torch.cat, (inputs, 1))
            case Affine():
                return self._call(operator, _norm(operator, flat), inputs[0])
            case Activate():
                return inputs[0]
        raise ModelError(f"plan must hold operators that torch has, got {operator.kind!r} at {operator.name!r}")

    def _convolved(self, conv: Conv, x: fx.Node, flat: bool) -> fx.Node:
        outputs, per_group, *kernel = conv.weight.shape
        weight, select = conv.weight, None
        with torch.device("meta"):  # no weights are drawn only to be replaced
            if flat:
                layer: Any = nn.Linear(per_group * kernel[0] * kernel[1], outputs)
                weight = weight.reshape(outputs, -1)
            else:
                channels, geometry = per_group * conv.groups, (conv.stride, conv.padding, conv.dilation)
                layer = nn.Conv2d(channels, outputs, kernel, *geometry, conv.groups)  # type: ignore[arg-type]
        if conv.input_channels is not None:
            weight, select = _selection(weight, conv.input_channels, self.plan.values[conv.inputs[0]][0])
        layer.weight, layer.bias = nn.Parameter(weight.float()), nn.Parameter(conv.bias.float())
        return self._call(conv, layer if select is None else nn.Sequential(select, layer), x)

    def _ceil_mode(self, pool: Operator, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> bool:
        """Which of torch's two ways to size a pool's output gives the plan's; any where they agree."""
        (_, *size), (_, *wanted) = self.plan.values[pool.inputs[0]], self.plan.values[pool.output]
        windows = list(zip(size, kernel, stride, padding, dilation, strict=True))
        for ceil in (False, True):
            if [_pooled(*window, ceil=ceil) for window in windows] == wanted:
                return ceil
        raise ModelError(f"{pool.name!r} must pool {size} to a size that torch does, got {wanted}")


def _pooled(size: int, kernel: int, stride: int, padding: int, dilation: int, *, ceil: bool) -> int:
    """torch's number of windows: with `ceil`, also one that is cut, unless it begins in the padding behind the map."""
    room = size + 2 * padding - dilation * (kernel - 1) - 1
    count = (room + (stride - 1 if ceil else 0)) // stride + 1
    return count - 1 if ceil and (count - 1) * stride >= size + padding else count


def _vectors(plan: Plan) -> set[int]:
    vectors = {value for value, shape in enumerate(plan.values) if shape[1:] == (1, 1)}
    for operator in reversed(plan.operators):
        if operator.output not in vectors or not _works_flat(operator, plan):
            vectors -= set(operator.inputs)
    return vectors


def _works_flat(operator: Operator, plan: Plan) -> bool:
    """Whether an operator whose output is a vector can be computed from its flattened inputs."""
    if not isinstance(operator, Conv):
        return isinstance(operator, (Add, Affine, Activate))
    whole = tuple(operator.weight.shape[1:]) == plan.values[operator.inputs[0]]
    return whole and operator.padding == (0, 0) and operator.input_channels is None


def _norm(affine: Affine, flat: bool) -> nn.Module:
    """As the batch norm that it was, of mean 0 and variance 1."""
    norm = (nn.BatchNorm1d if flat else nn.BatchNorm2d)(len(affine.scale), eps=0.0)
    norm.weight, norm.bias = nn.Parameter(affine.scale.float()), nn.Parameter(affine.bias.float())
    return norm


def _selection(
    weight: Float[Tensor, "o k kh kw"], listed: Int32[Tensor, "groups k"], channels: int
) -> tuple[Float[Tensor, "o k kh kw"], nn.Module]:
    """What gives a grouped convolution the channels that its groups list, and the weight for the order they come in.

    A channel shuffle wherever it gives each group the same channels, as all libraries know it.
    """
    groups, per_group = listed.shape
    if groups * per_group == channels:
        shuffled = shuffle_permutation(channels, groups).view(groups, per_group)
        if torch.equal(shuffled.sort(1).values, listed.long().sort(1).values):
            order = listed.argsort(1).gather(1, shuffled.argsort(1).argsort(1))
            blocks = weight.chunk(groups)
            weight = torch.cat([block[:, inputs] for block, inputs in zip(blocks, order, strict=True)])
            return weight, ChannelShuffle(groups)
    return weight, ChannelSelection(listed.flatten().long())
