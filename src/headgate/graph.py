"""Find what can be gated in a model by its graph, not by its class names.

A model is traced with `torch.fx`; every convolution becomes a `ConvSite` that says which norm and activation follow it,
or why it cannot be gated. Nothing here changes the model.
"""

from __future__ import annotations

import difflib
import operator
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from headgate.errors import ModelError
from headgate.nn.binary import BinaryConv2d
from headgate.nn.gated_conv import GatedConv2d
from headgate.tracing import evaluation_mode, placed, trace

_Layer = TypeVar("_Layer", bound=nn.Module)

_UNITS = frozenset(("relu", "relu6", "leakyrelu", "prelu", "rrelu", "elu", "selu", "celu", "gelu", "quickgelu"))
ONE_SIDED = _UNITS | {"silu", "swish", "mish", "softplus", "hardswish", "hardmish"}
"""Activations that keep large sums and flatten small ones (names in lower case, without underscores)."""
TWO_SIDED = frozenset(("tanh", "sigmoid", "hardsigmoid", "hardtanh", "softsign"))
"""Activations that saturate on both sides."""
_DROPS = frozenset(("dropout", "dropout1d", "dropout2d", "dropout3d", "alphadropout", "featurealphadropout"))
TRANSPARENT = _DROPS | {"identity", "droppath", "stochasticdepth", "dropblock2d", "contiguous"}
"""What may stand between a convolution, its norm and its activation."""
_RESHAPES = frozenset(("view", "reshape", "unsqueeze", "flatten"))
_CONV_FUNCTIONS = frozenset(f"{kind}{d}d" for kind in ("conv", "convtranspose") for d in (1, 2, 3))


@dataclass(frozen=True, kw_only=True)
class ConvSite:
    """One convolution of a model and what stands around it.

    Attributes:
        name: path of the convolution in the model; for a functional convolution, of the module that calls it.
        conv: the module; None for a functional convolution.
        norm, norm_name: the norm that takes the convolution's output, and its path; None where there is none that
            gating can take over.
        activation: name of the activation behind, in lower case; None where none follows.
        two_sided: it saturates on both sides.
        residual: a residual is added before the activation.
        first: no convolution lies between the model's input and this one.
        pooled: it works on a 1×1 map.
        obstacle: why this layer can never be gated.
        missing: why no activation was found behind it.
        in_size, out_size: (height, width) of its maps, where an example input was given.
    """

    name: str
    conv: nn.Module | None = None
    norm: nn.Module | None = None
    norm_name: str | None = None
    activation: str | None = None
    two_sided: bool = False
    residual: bool = False
    first: bool = False
    pooled: bool = False
    obstacle: str | None = None
    missing: str | None = None
    in_size: tuple[int, int] | None = None
    out_size: tuple[int, int] | None = None


def operation(node: fx.Node, modules: Mapping[str, nn.Module]) -> str:
    """What a node does, in lower case without underscores: "relu" for nn.ReLU, F.relu, torch.relu, x.relu_()."""
    if node.op == "call_module":
        return module_operation(modules[str(node.target)])
    name = getattr(node.target, "__name__", str(node.target)) if node.op == "call_function" else str(node.target)
    name = name.replace("_", "").lower()
    if name in ("hardtanh", "clamp", "clip", "clampmin"):
        return _clamp(name, node.args[1:], node.kwargs)
    return name


def _clamp(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    low: Any = next((kwargs[key] for key in ("min", "min_val") if key in kwargs), args[0] if args else None)
    if isinstance(low, (int, float)) and low >= 0:
        return "relu6" if len(args) + len(kwargs) > 1 else "relu"
    return name if name == "hardtanh" else "clamp"


def module_operation(module: nn.Module) -> str:
    """The same for a module; a subclass counts as the layer that it derives from."""
    known = ONE_SIDED | TWO_SIDED | TRANSPARENT
    for cls in type(module).__mro__:
        name = cls.__name__.replace("_", "").lower().removesuffix("me")
        if name in known and cls.__module__.startswith(("torch.nn", "torchvision", "timm")):
            if isinstance(module, nn.Hardtanh) and name == "hardtanh" and module.min_val >= 0:
                return "relu6"
            return name
    return type(module).__name__.lower()


def is_residual_add(node: fx.Node) -> bool:
    """A sum of two tensors, without scaling."""
    added = node.op == "call_function" and node.target in (operator.add, operator.iadd, torch.add)
    added = added or (node.op == "call_method" and node.target in ("add", "add_"))
    operands = [a for a in node.args if isinstance(a, fx.Node)]
    return added and len(operands) == 2 and operands[0] is not operands[1] and not node.kwargs


def norm_activation(norm: nn.Module) -> nn.Module | None:
    """The activation inside a norm that has one (timm's BatchNormAct2d), else None."""
    act = getattr(norm, "act", None)
    return act if isinstance(act, nn.Module) and type(norm).__module__.startswith("timm") else None


def norm_obstacle(norm: nn.Module) -> str | None:
    """Why this norm cannot be taken over, or None."""
    name = type(norm).__name__
    if not isinstance(norm, (nn.BatchNorm2d, nn.SyncBatchNorm)):
        return f"followed by {name}, not by BatchNorm2d"
    own_forward = type(norm).forward not in (_BatchNorm.forward, nn.SyncBatchNorm.forward)
    if own_forward and norm_activation(norm) is None:
        return f"its norm {name} computes something of its own"
    if norm.momentum is None:
        return f"its {name} averages cumulatively (momentum=None)"
    if norm.running_mean is None or norm.running_var is None:
        return f"its {name} keeps no running statistics"
    if _has_hooks(norm) or parametrize.is_parametrized(norm):
        return f"its {name} has hooks or parametrisations, which gating would drop"
    return None


def _has_hooks(module: nn.Module) -> bool:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name) for name in hooks)


def _conv_obstacle(conv: nn.Module) -> str | None:
    name = type(conv).__name__
    if not isinstance(conv, nn.Conv2d):
        return f"{name} is not a Conv2d"
    known = (nn.Conv2d.forward, BinaryConv2d.forward)
    if type(conv).forward not in known or type(conv)._conv_forward is not nn.Conv2d._conv_forward:
        return f"{name} computes something of its own"
    if _has_hooks(conv) or parametrize.is_parametrized(conv) or "weight" not in conv._parameters:
        return "has hooks or parametrisations, which gating would drop"
    if conv.padding_mode != "zeros":
        return f"padding_mode is {conv.padding_mode!r}, not 'zeros'"
    if conv.groups == conv.in_channels > 1:
        return "depthwise: one input channel per group cannot be split"
    return None


class _Behind(NamedTuple):
    """Where a convolution's output goes."""

    activation: str | None = None
    residual: bool = False
    missing: str | None = None


class _Reader:
    """Reads the convolutions of one traced model."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.graph = graph
        self.calls = Counter(id(self.modules[str(n.target)]) for n in graph.nodes if n.op == "call_module")
        self.attributes = [node for node in graph.nodes if node.op == "get_attr"]
        self.below_conv: set[fx.Node] = set()
        self.pooled: set[fx.Node] = set()

    def module(self, node: fx.Node) -> nn.Module | None:
        return self.modules[str(node.target)] if node.op == "call_module" else None

    def is_conv(self, node: fx.Node) -> bool:
        if node.op == "call_function":
            return operation(node, self.modules) in _CONV_FUNCTIONS
        return isinstance(self.module(node), (_ConvNd, GatedConv2d))

    def sites(self) -> Iterator[ConvSite]:
        for node in self.graph.nodes:
            inputs = node.all_input_nodes
            if self.is_conv(node):
                yield self._site(node)
            if self.is_conv(node) or any(i in self.below_conv for i in inputs):
                self.below_conv.add(node)
            if self._is_pool(node) or (inputs and inputs[0] in self.pooled and self._keeps_map(node)):
                self.pooled.add(node)

    def _is_pool(self, node: fx.Node) -> bool:
        name, module = operation(node, self.modules), self.module(node)
        if name.startswith(("adaptiveavgpool", "adaptivemaxpool", "selectadaptivepool")):
            size = getattr(module, "output_size", 1) if module is not None else (node.args[1:] or (1,))[0]
            return size in (1, (1, 1), [1, 1])
        dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        return name == "mean" and isinstance(dims, (tuple, list)) and set(dims) in ({2, 3}, {-1, -2})

    def _keeps_map(self, node: fx.Node) -> bool:
        name = operation(node, self.modules)
        known = name in ONE_SIDED | TWO_SIDED | TRANSPARENT | _RESHAPES
        return known or self.is_conv(node) or isinstance(self.module(node), _NormBase)

    def _site(self, node: fx.Node) -> ConvSite:
        first = not any(i in self.below_conv for i in node.all_input_nodes)
        conv = self.module(node)
        obstacle: str | None
        if conv is None:
            stack = list(node.meta.get("nn_module_stack", {}).values())
            where = f"{stack[-1][0]}." if stack and stack[-1][0] else ""
            obstacle = "a functional convolution; make it an nn.Conv2d module to gate it"
            return ConvSite(name=f"{where}{node.name}", first=first, obstacle=obstacle)
        source = node.all_input_nodes[0] if node.all_input_nodes else node
        in_size, out_size = source.meta.get("size"), node.meta.get("size")
        obstacle = _conv_obstacle(conv)
        if obstacle is None and self.calls[id(conv)] > 1:
            obstacle = f"called {self.calls[id(conv)]} times in one forward pass"
        norm_node, norm_problem = self._norm(node)
        norm = self.module(norm_node) if norm_node is not None else None
        if norm_problem is not None:
            behind = _Behind(missing=norm_problem)
        else:
            behind = self._behind(norm_node or node, adds=norm_node is not None)
        several = len(node.users) > 1 and (behind.missing is None or any(map(self._is_norm, node.users)))
        if obstacle is None and several:
            obstacle = f"its output is used by {len(node.users)} operations"
        return ConvSite(
            name=str(node.target),
            conv=conv,
            norm=norm,
            norm_name=str(norm_node.target) if norm_node is not None else None,
            activation=behind.activation,
            two_sided=behind.activation in TWO_SIDED,
            residual=behind.residual,
            first=first,
            pooled=source in self.pooled or in_size == (1, 1),
            obstacle=obstacle,
            missing=behind.missing,
            in_size=in_size,
            out_size=out_size,
        )

    def _is_norm(self, node: fx.Node) -> bool:
        module = self.module(node)
        return isinstance(module, (_NormBase, nn.GroupNorm, nn.LayerNorm)) or "Norm" in type(module).__name__

    def _norm(self, node: fx.Node) -> tuple[fx.Node | None, str | None]:
        """The norm behind, through dropouts; or why there is one that cannot be taken over."""
        users = list(node.users)
        while len(users) == 1 and operation(users[0], self.modules) == "identity":
            users = list(users[0].users)
        norm = self.module(users[0]) if len(users) == 1 else None
        if norm is None or not self._is_norm(users[0]):
            return None, None
        problem = norm_obstacle(norm)
        if problem is None and self.calls[id(norm)] > 1:
            problem = f"its {type(norm).__name__} is shared by {self.calls[id(norm)]} calls"
        if problem is None and any(str(n.target).startswith(f"{users[0].target}.") for n in self.attributes):
            problem = f"the parameters of its {type(norm).__name__} are used elsewhere too"
        return (None, problem) if problem else (users[0], None)

    def _behind(self, node: fx.Node, *, adds: bool) -> _Behind:
        """The activation that every use of `node` leads to."""
        module = self.module(node)
        inner = norm_activation(module) if module is not None else None
        if inner is not None and module_operation(inner) != "identity":
            name = module_operation(inner)
            known = name in ONE_SIDED | TWO_SIDED
            return _Behind(name) if known else _Behind(missing=f"followed by {name}, not by a known activation")
        uses = {operation(user, self.modules) for user in node.users}
        if uses == {"sigmoid", "mul"} and len(node.users) == 2:
            return _Behind("silu")
        found = [self._through(user, adds=adds) for user in node.users]
        failed = next((f for f in found if f.activation is None), None)
        if failed is not None or not found:
            return failed or _Behind(missing="its output is not used")
        if len({f.activation in TWO_SIDED for f in found}) > 1:
            return _Behind(missing="followed by one- and two-sided activations")
        return found[0]

    def _through(self, user: fx.Node, *, adds: bool) -> _Behind:
        name = operation(user, self.modules)
        if user.op == "output":
            return _Behind(missing="no activation follows: it is an output of the model")
        if name in ONE_SIDED | TWO_SIDED:
            return _Behind(name)
        if name in TRANSPARENT:
            return self._behind(user, adds=adds)
        if adds and is_residual_add(user):
            return self._behind(user, adds=False)._replace(residual=True)
        return _Behind(missing=f"no activation follows, but {name}")


def conv_sites(model: nn.Module, example_input: Any = None) -> tuple[ConvSite, ...]:
    """Every convolution of `model`, in the order of its graph in evaluation mode; those it does not reach come last.

    Args:
        example_input: a batch, or a tuple of the model's positional inputs; moved to the model's device.
    Raises: ModelError: the model cannot be traced, or `example_input` does not fit it.
    """
    example = None if example_input is None else placed(model, example_input)
    with evaluation_mode(model):
        graph = trace(model, example)
        sites = list(_Reader(model, graph).sites())
    leaves = {
        str(node.target): model.get_submodule(str(node.target)) for node in graph.nodes if node.op == "call_module"
    }
    reached = {id(site.conv) for site in sites}
    for name, module in model.named_modules():
        if isinstance(module, _ConvNd) and id(module) not in reached:
            leaf = next((type(m).__name__ for path, m in leaves.items() if name.startswith(f"{path}.")), None)
            untraced = f"inside {leaf}, which is not traced through"
            obstacle = untraced if leaf else "not reached by the forward pass in evaluation mode"
            sites.append(ConvSite(name=name, conv=module, obstacle=obstacle))
    return tuple({site.name: site for site in reversed(sites)}.values())[::-1]


# ------------------------------------------------------------------------------------------------------------- by name


def find_layer(model: nn.Module, name: str, kind: type[_Layer] | tuple[type[_Layer], ...], described: str) -> _Layer:
    """The layer of that name.

    Args:    described: the kind, for the message.
    Raises:  ModelError: it is missing (near matches are listed), or is of another kind.
    """
    try:
        module = model.get_submodule(name)
    except AttributeError as error:
        near = near_names(name, (n for n, m in model.named_modules() if isinstance(m, kind)))
        raise ModelError(
            f"model must have {described} named {name!r}, got {type(model).__name__} without it"
            f"{f'; near it: {near}' if near else ''}; build the model that was saved"
        ) from error
    if not isinstance(module, kind):
        raise ModelError(f"{name!r} must be {described}, got {type(module).__name__}; build the model that was saved")
    return module


def find_norm(model: nn.Module, name: str) -> nn.BatchNorm2d | nn.SyncBatchNorm:
    """The norm of that name, which a gated convolution is to take over.

    Raises: ModelError: it is missing, no batch norm, or cannot be taken over.
    """
    norm = find_layer(model, name, (nn.BatchNorm2d, nn.SyncBatchNorm), "a BatchNorm2d")
    assert isinstance(norm, (nn.BatchNorm2d, nn.SyncBatchNorm))  # which mypy joins to their common base
    if norm_obstacle(norm):
        raise ModelError(f"{name!r} must be a norm that gating can take over: {norm_obstacle(norm)}")
    return norm


def near_names(name: str, names: Iterable[str]) -> str:
    """The names that a misspelt one may mean, for a message."""
    return ", ".join(map(repr, difflib.get_close_matches(name, list(names), n=3, cutoff=0.5)))
