"""Trace a model with `torch.fx` down to its layers, without leaving a trace in it."""

from __future__ import annotations

import inspect
import operator
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from headgate.errors import ModelError
from headgate.nn.gated_conv import GatedConv2d


class _ValueProxy(fx.Proxy):
    """A proxy that knows its value for the example input: shapes are numbers, and branches can be taken."""

    tracer: Tracer

    @property
    def _value(self) -> Any:
        return self.tracer.values[self.node]

    def __getattr__(self, k: str) -> Any:
        value = getattr(self._value, k)
        return super().__getattr__(k) if isinstance(value, Tensor) or callable(value) else value

    def __len__(self) -> int:
        return len(self._value)

    def __int__(self) -> int:
        return int(self._value)

    def __float__(self) -> float:
        return float(self._value)

    def __index__(self) -> int:
        return operator.index(self._value)


class Tracer(fx.Tracer):
    """Traces down to convolutions, norms, activations and pools.

    Args:
        example: arguments of the model's forward. They are run along, so that shapes are known and control flow that
            depends on them can be followed; the graph then holds for this example only.
    """

    def __init__(self, example: tuple[Any, ...] | None = None) -> None:
        functions, self.leaf_classes = _timm_leaves()
        super().__init__(autowrap_functions=functions)
        self.example = example
        self.inputs: dict[str, Any] = {}
        self.values: dict[fx.Node, Any] = {}
        self.evaluating = False
        self.failed_in: str | None = None

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, (GatedConv2d, _ConvNd, _NormBase, nn.GroupNorm, nn.LayerNorm, *self.leaf_classes)):
            return True
        if type(m).__name__ == "FrozenBatchNorm2d":
            return True
        if type(m).__module__.startswith("timm.layers"):
            return next(m.children(), None) is None
        return super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self.evaluating:
            return forward(*args, **kwargs)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed_in = self.failed_in or f"{self.path_of_module(m)!r} ({type(m).__name__})"
            raise

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        return attr_val if self.evaluating else super().getattr(attr, attr_val, parameter_proxy_cache)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return fx.Proxy(node, self) if self.example is None else _ValueProxy(node, self)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any) -> Any:
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **options)
        if self.example is None:
            return proxy
        node = proxy.node
        if kind == "placeholder":
            name = str(target).lstrip("*")
            self.values[node] = self.inputs[name] if name in self.inputs else args[0]
            return proxy
        value = self.values[node] = self._evaluate(node)
        if isinstance(value, Tensor) and value.dim() == 4:
            node.meta["size"] = (value.shape[2], value.shape[3])
        return proxy if _holds_tensor(value) else value

    def to_bool(self, obj: fx.Proxy) -> bool:
        return super().to_bool(obj) if self.example is None else bool(self.values[obj.node])

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        if self.example is None:
            return super().iter(obj)
        return iter([obj[i] for i in range(len(self.values[obj.node]))])  # type: ignore[index]

    def _evaluate(self, node: fx.Node) -> Any:
        def value_of(argument: fx.Node) -> Any:
            if argument not in self.values:  # a parameter or buffer that was passed directly
                self.values[argument] = operator.attrgetter(str(argument.target))(self.root)
            return self.values[argument]

        args, kwargs = fx.node.map_arg((node.args, node.kwargs), value_of)
        self.evaluating = True
        try:
            match node.op:
                case "get_attr":
                    return operator.attrgetter(str(node.target))(self.root)
                case "call_module":
                    return self.root.get_submodule(str(node.target))(*args, **kwargs)
                case "call_method":
                    return getattr(args[0], str(node.target))(*args[1:], **kwargs)
                case _:
                    return node.target(*args, **kwargs)  # type: ignore[operator]
        finally:
            self.evaluating = False

    def run(self, model: nn.Module) -> fx.Graph:
        """Trace `model`; optional arguments that the example does not give keep their defaults."""
        parameters = inspect.signature(model.forward).parameters
        positional = [name for name, p in parameters.items() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        if self.example is not None:
            self.inputs = dict(zip(positional, self.example, strict=False))
        elif all(p.default is not inspect.Parameter.empty for p in parameters.values()):
            self.inputs = dict.fromkeys(positional[:1])  # every argument is optional: the first is the image
        plain = (bool, int, float, str, type(None))
        defaults = {
            name: p.default
            for name, p in parameters.items()
            if name not in self.inputs and isinstance(p.default, plain)
        }
        return self.trace(model, concrete_args=defaults or None)


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_tensor, value.values()))
    return isinstance(value, Tensor) or (isinstance(value, (tuple, list)) and any(map(_holds_tensor, value)))


def _timm_leaves() -> tuple[tuple[Callable[..., Any], ...], tuple[type, ...]]:
    """Functions and modules that timm, where it is loaded, registers as untraceable."""
    timm_fx = sys.modules.get("timm.layers._fx")
    if timm_fx is None:
        return (), ()
    functions = tuple(f for f in timm_fx.get_notrace_functions() if callable(f))
    return functions, tuple(timm_fx.get_notrace_modules())


def trace(model: nn.Module, example: tuple[Any, ...] | None = None) -> fx.Graph:
    """The graph of `model` in the mode it is in.

    Raises: ModelError: it cannot be traced; the message names the submodule.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(f"model must be a plain torch module, got the script module {type(model).__name__}")
    for wrapper, where in ((nn.parallel.DistributedDataParallel, "module"), (nn.DataParallel, "module")):
        if isinstance(model, wrapper):
            raise ModelError(f"model must be the plain module, got it inside {wrapper.__name__}; use model.{where}")
    if hasattr(model, "_orig_mod"):
        raise ModelError("model must be the plain module, got a compiled one; gate or fuse first, then torch.compile")
    tracer, attributes = Tracer(example), set(model.__dict__)
    try:
        return tracer.run(model)
    except Exception as error:
        where = f"submodule {tracer.failed_in}" if tracer.failed_in else "the model's own forward"
        remedy = "make that code traceable, wrap a data-dependent function with torch.fx.wrap, or gate a submodule"
        if example is None:
            remedy = "pass example_input, so that shapes and branches are known; or " + remedy
        problem = (str(error).strip() or "no message").splitlines()[0].split(". ")[0][:200]
        raise ModelError(
            f"model must be traceable by torch.fx, got {type(model).__name__}, which fails in {where} with "
            f"{type(error).__name__}: {problem}; {remedy}"
        ) from error
    finally:
        for name in set(model.__dict__) - attributes:  # constants that fx stows away on its root
            delattr(model, name)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode, and no gradients, inside the block; flags and random state are put back."""
    flags = [(module, module.training) for module in model.modules()]
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices), torch.no_grad():
        try:
            for module, _ in flags:
                module.training = False
            yield
        finally:
            for module, training in flags:
                module.training = training


def placed(model: nn.Module, example_input: Any) -> tuple[Any, ...]:
    """Copies of the model's positional inputs, on the model's device."""
    parameter = next(model.parameters(), None)
    inputs = example_input if isinstance(example_input, tuple) else (example_input,)

    def copy(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.clone() if parameter is None else value.to(parameter.device, copy=True)

    return tuple(map(copy, inputs))
