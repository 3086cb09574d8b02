"""Which channels of a network carry nothing: constants and shared channels, found by walking its graph.

Every tensor of the graph gets a *space* (tensors that must have the same channels share one: what a norm, an
activation, a pool or a sum takes and gives) and a *constant* for each channel that has the same value for every image
and pixel. Whatever is not understood is taken to need all of its channels.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn.utils import parametrize

from headgate.errors import ModelError
from headgate.graph import ONE_SIDED, TRANSPARENT, TWO_SIDED, is_residual_add, operation
from headgate.nn import GatedConv2d
from headgate.tracing import evaluation_mode, placed, trace

_POOLS: Final = {"maxpool2d", "avgpool2d", "adaptivemaxpool2d", "adaptiveavgpool2d"}
_PRODUCTS: Final = {"mul", "imul"}
_ARITHMETIC: Final = _PRODUCTS | {"add", "iadd", "sub", "isub", "truediv", "div"}
_BY_CHANNEL: Final = (ONE_SIDED | TWO_SIDED | TRANSPARENT | _POOLS | _ARITHMETIC | {"mean"}) - {"prelu", "rrelu"}
_FLATTENS: Final = {"flatten", "view", "reshape"}
_ROUNDING: Final = 1e-12  # relative, in float64: a pool of equal values may round


class Space:
    """Channels that several tensors have in common. Compare spaces by `root`.

    Attributes:
        channels: how many.
        pinned: why all of them must stay; None: they need not.
    """

    def __init__(self, channels: int, pinned: str | None = None) -> None:
        self.channels, self.pinned = channels, pinned
        self._parent: Space | None = None

    @property
    def root(self) -> Space:
        """The one that stands for all spaces that were joined."""
        space = self
        while space._parent is not None:
            space = space._parent
        return space

    def join(self, other: Space) -> None:
        """From now on the two are one."""
        ours, theirs = self.root, other.root
        if ours is not theirs:
            theirs._parent = ours
            ours.pinned = ours.pinned or theirs.pinned

    def pin(self, why: str) -> None:
        """Keep all channels."""
        self.root.pinned = self.root.pinned or why


@dataclass(kw_only=True)
class Fact:
    """What is known of one tensor.

    Attributes:
        repeat: features that each channel of the space was flattened to.
        constant: value of each channel that has only one; NaN for the others.
    """

    space: Space
    repeat: int
    constant: Float[Tensor, " channels"]


@dataclass(kw_only=True)
class Layer:
    """A convolution or linear layer, and what it reads and makes.

    Attributes:
        groups: of the convolution.
        reads, makes: spaces of its input and its output.
        settled: (outputs, inputs of a group) whether an input adds the same to all pixels of an output, whatever the
            image.
        contribution: (outputs, inputs of a group) what it adds where it is settled; else 0.
    """

    name: str
    groups: int
    reads: Space
    makes: Space
    repeat: int
    settled: Bool[Tensor, "c_out c_in_of_group"]
    contribution: Float[Tensor, "c_out c_in_of_group"]


@dataclass(kw_only=True)
class Channels:
    """What `find_channels` found.

    Attributes:
        graph: of the model in evaluation mode.
        layers, norms: by name, in the order of the graph.
        facts: of each tensor.
        zeros: names of residual sums, and of one operand of each that is 0 for every image.
    """

    graph: fx.Graph
    layers: dict[str, Layer] = field(default_factory=dict)
    norms: dict[str, Space] = field(default_factory=dict)
    facts: dict[fx.Node, Fact] = field(default_factory=dict)
    zeros: dict[str, str] = field(default_factory=dict)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The layers that make what the model returns."""
        returned = [self.facts[n].space.root for n in self.graph.output_node().all_input_nodes if n in self.facts]
        return tuple(name for name, layer in self.layers.items() if layer.makes.root in returned)


def as_graph(model: nn.Module, example_input: Any) -> fx.GraphModule:
    """A copy of a dense model as its graph in evaluation mode, with the same layers under the same names.

    Args:    example_input: a batch, or a tuple of positional inputs; used where the code depends on shapes.
    Raises:  ModelError: the model is gated, or cannot be traced.
    """
    return graph_over(copy.deepcopy(model), example_input)


def graph_over(model: nn.Module, example_input: Any) -> fx.GraphModule:
    """The same over the model's own layers: what is done to one's is done to the other's."""
    if any(isinstance(module, GatedConv2d) for module in model.modules()):
        raise ModelError(f"model must be dense, got a gated {type(model).__name__}")
    with evaluation_mode(model):
        try:
            graph = trace(model)  # without values first: the batch's size stays a node, not a number
        except ModelError:
            graph = trace(model, placed(model, example_input))
        traced = fx.GraphModule(model, graph, type(model).__name__)
    traced.training = model.training
    if hasattr(model, "preprocess"):
        traced.preprocess = model.preprocess
    return traced


def find_channels(model: fx.GraphModule, example_input: Any) -> Channels:
    """Walk the graph of a model that `as_graph` made. It is left as it is.

    Args:    example_input: a batch, or a tuple of positional inputs.
    Raises:  ModelError: `example_input` does not fit the model.
    """
    exact = copy.deepcopy(model).double()
    inputs = tuple(x.double() if isinstance(x, Tensor) else x for x in placed(exact, example_input))
    with evaluation_mode(exact):
        try:
            ShapeProp(exact).propagate(*inputs)
        except Exception as error:
            raise ModelError(
                f"example_input must fit the model, got one that fails with {type(error).__name__}: {error}"
            ) from error
        return _Walk(exact).run()


class _Walk:
    """Follows one graph from its inputs to its outputs."""

    def __init__(self, model: fx.GraphModule) -> None:
        self.graph = model.graph
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.calls = Counter(id(self.modules[str(n.target)]) for n in self.graph.nodes if n.op == "call_module")
        self.found = Channels(graph=self.graph)

    def run(self) -> Channels:
        for node in self.graph.nodes:
            fact = self._fact(node)
            if fact is not None:
                self.found.facts[node] = fact
        return self.found

    def _fact(self, node: fx.Node) -> Fact | None:
        if node.op == "output":
            self._pin(node, "it is an output of the model")
            return None
        module = self.modules[str(node.target)] if node.op == "call_module" else None
        fact = self.found.facts.get(node.args[0]) if node.args and isinstance(node.args[0], fx.Node) else None
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d | nn.BatchNorm1d):
            why = self._not_plain(module)
            if fact is None or why or (isinstance(module, nn.Linear) and len(_shape(node)) != 2):
                self._pin(node, f"read by {node.target}, {why or 'whose input is not understood'}")
                return self._unknown(node, why or "its input is not understood")
            if isinstance(module, nn.Conv2d | nn.Linear):
                return self._layer(str(node.target), module, fact)
            return self._norm(str(node.target), module, fact)
        name = operation(node, self.modules)
        known = node.op != "placeholder" and node.all_input_nodes
        if known and name in _FLATTENS:
            return self._flatten(node, fact) or self._give_up(node)
        if known and name in _BY_CHANNEL:
            return self._by_channel(node, name) or self._give_up(node)
        return self._give_up(node)

    # ------------------------------------------------------------------------------------------------ what is not known

    def _not_plain(self, module: nn.Module) -> str:
        if self.calls[id(module)] > 1:
            return f"which is called {self.calls[id(module)]} times"
        own = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.BatchNorm1d)
        hooked = module._forward_hooks or module._forward_pre_hooks or parametrize.is_parametrized(module)
        if hooked or type(module).forward not in [cls.forward for cls in own]:
            return f"a {type(module).__name__} that computes something of its own"
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d) and module.running_mean is None:
            return "which keeps no running statistics"
        return ""

    def _pin(self, node: fx.Node, why: str) -> None:
        for operand in node.all_input_nodes:
            if operand in self.found.facts:
                self.found.facts[operand].space.pin(why)

    def _unknown(self, node: fx.Node, why: str) -> Fact | None:
        shape = _shape(node)
        if len(shape) < 2:
            return None
        return Fact(space=Space(shape[1], why), repeat=1, constant=_unknowns(shape[1]))

    def _give_up(self, node: fx.Node) -> Fact | None:
        if node.op in ("placeholder", "get_attr"):
            return self._unknown(node, "it is an input of the model")
        if not _shape(node):
            return None  # a size, not a tensor
        name = str(node.target) if node.op == "call_module" else node.name
        why = f"{operation(node, self.modules)} ({name}) may mix channels"
        self._pin(node, why)
        return self._unknown(node, why)

    # ------------------------------------------------------------------------------------------------------ what is

    def _layer(self, name: str, module: nn.Conv2d | nn.Linear, fact: Fact) -> Fact:
        """A channel that is constant stays so behind a convolution, if it is 0 or nothing is padded with zeros."""
        groups = module.groups if isinstance(module, nn.Conv2d) else 1
        weight = weight_by_channel(module, fact.repeat)
        padded = isinstance(module, nn.Conv2d) and module.padding_mode == "zeros"
        padded = padded and any(module._reversed_padding_repeated_twice)  # type: ignore[arg-type]
        known = fact.constant.isfinite()
        steady = known & (fact.constant == 0) if padded else known
        c_out, inputs = weight.shape[:2]

        def by_output(values: Tensor) -> Tensor:
            return values.view(groups, 1, inputs).expand(-1, c_out // groups, -1).reshape(c_out, inputs)

        unread = (weight == 0).all(2)
        settled = unread | by_output(steady)
        contribution = weight.sum(2) * by_output(torch.where(steady, fact.constant, 0.0))
        bias = module.bias if module.bias is not None else weight.new_zeros(c_out)
        constant = torch.where(settled.all(1), contribution.sum(1) + bias, torch.nan)
        made = Fact(space=Space(c_out), repeat=1, constant=constant)
        self.found.layers[name] = Layer(
            name=name,
            groups=groups,
            reads=fact.space,
            makes=made.space,
            repeat=fact.repeat,
            settled=settled,
            contribution=contribution,
        )
        return made

    def _norm(self, name: str, norm: nn.BatchNorm2d | nn.BatchNorm1d, fact: Fact) -> Fact:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        if fact.repeat > 1:
            fact.space.pin(f"read by {name}, a norm of flattened maps")
        scale = (norm.running_var + norm.eps).rsqrt()
        scale = scale if norm.weight is None else scale * norm.weight
        constant = torch.full_like(scale, torch.nan)
        if fact.repeat == 1:
            moved = torch.where(scale == 0, 0.0, (fact.constant - norm.running_mean) * scale)
            constant = moved if norm.bias is None else moved + norm.bias
            self.found.norms[name] = fact.space
            return Fact(space=fact.space, repeat=1, constant=constant)
        return Fact(space=fact.space, repeat=fact.repeat, constant=_unknowns(fact.space.channels))

    def _flatten(self, node: fx.Node, fact: Fact | None) -> Fact | None:
        """Maps to vectors, image by image."""
        before, after = _shape(node.args[0]), _shape(node)
        fixed = operation(node, self.modules) != "flatten" and node.args[-1] != -1  # a number of features
        if fact is None or fixed or after != (before[0], math.prod(before[1:])):
            return None
        return Fact(space=fact.space, repeat=after[1] // fact.space.channels, constant=fact.constant)

    def _by_channel(self, node: fx.Node, name: str) -> Fact | None:
        """Whatever gives one value where it takes one: computed, on maps of the constants."""
        operands = node.all_input_nodes
        facts = [self.found.facts[operand] for operand in operands if operand in self.found.facts]
        sizes = {(fact.space.channels, fact.repeat) for fact in facts}
        dims = {len(_shape(operand)) for operand in operands}
        if len(facts) != len(operands) or len(sizes) != 1 or len(dims) != 1:
            return None
        if name == "mean" and not _over_pixels(node):
            return None
        if is_residual_add(node) and _shape(operands[0]) == _shape(operands[1]):
            for operand, fact in zip(operands, facts, strict=True):
                if bool((fact.constant == 0).all()):
                    self.found.zeros[node.name] = operand.name
        for other in facts[1:]:
            facts[0].space.join(other.space)
        constant = self._constants(node, name, operands, facts)
        if name in TRANSPARENT or self._in_place(node):  # the same memory: what it held before is gone
            facts[0].constant = constant
            return facts[0]
        return Fact(space=facts[0].space, repeat=facts[0].repeat, constant=constant)

    def _constants(self, node: fx.Node, name: str, operands: list[fx.Node], facts: list[Fact]) -> Tensor:
        def map_of(operand: fx.Node) -> Tensor:
            fact, shape = facts[operands.index(operand)], _shape(operand)
            values = fact.constant.repeat_interleave(fact.repeat)
            return values.view(1, -1, *(1 for _ in shape[2:])).expand(1, *shape[1:]).clone()

        args, kwargs = fx.node.map_arg((node.args, node.kwargs), map_of)
        match node.op:
            case "call_module":
                result = self.modules[str(node.target)](*args, **kwargs)
            case "call_method":
                result = getattr(args[0], str(node.target))(*args[1:], **kwargs)
            case _:
                result = node.target(*args, **kwargs)  # type: ignore[operator]
        values = result.reshape(facts[0].space.channels, -1)
        low, high = values.amin(1), values.amax(1)
        known = torch.stack([fact.constant.isfinite() for fact in facts]).all(0)
        constant = torch.where(known & (high - low <= _ROUNDING * high.abs()), high, torch.nan)
        if name in _PRODUCTS:
            constant[torch.stack([fact.constant == 0 for fact in facts]).any(0)] = 0.0  # times whatever is finite
        return constant

    def _in_place(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return bool(getattr(self.modules[str(node.target)], "inplace", False))
        name = getattr(node.target, "__name__", str(node.target))
        return name in ("iadd", "imul", "isub") or name.endswith("_") or bool(node.kwargs.get("inplace", False))


def weight_by_channel(layer: nn.Conv2d | nn.Linear, repeat: int) -> Float[Tensor, "c_out c_in_of_group taps"]:
    """The weight with all that belongs to one input channel in the last dimension.

    Args: repeat: features that each channel was flattened to.
    """
    weight = layer.weight
    return weight.flatten(2) if isinstance(layer, nn.Conv2d) else weight.view(len(weight), -1, repeat)


def weight_by_group(conv: nn.Conv2d) -> Float[Tensor, "groups outputs inputs height width"]:
    """The weight of each of a convolution's groups: a view."""
    return conv.weight.view(conv.groups, -1, *conv.weight.shape[1:])


def _over_pixels(node: fx.Node) -> bool:
    dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    return isinstance(dims, list | tuple) and set(dims) in ({2, 3}, {-1, -2}) and len(_shape(node.args[0])) == 4


def _shape(node: Any) -> tuple[int, ...]:
    """Of a node's result; () where that is no tensor."""
    meta = node.meta.get("tensor_meta") if isinstance(node, fx.Node) else None
    return tuple(getattr(meta, "shape", ()))


def _unknowns(channels: int) -> Float[Tensor, " channels"]:
    return torch.full((channels,), torch.nan, dtype=torch.float64)
