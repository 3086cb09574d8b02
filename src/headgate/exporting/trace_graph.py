"""From a model to a graph of layers in evaluation mode, with the shape of every result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from headgate.errors import DtypeError, ExportError, ModelError, ShapeError
from headgate.tracing import evaluation_mode, placed, trace


@dataclass(frozen=True, kw_only=True)
class Traced:
    """A model's graph, and what running it on an example gave.

    Attributes:
        model: class name.
        graph: of the model in evaluation mode.
        modules: by every path at which they are registered.
        batch: images in the example.
        shapes: of each node whose result is a tensor.
        constants: the results of all other nodes, such as sizes.
    """

    model: str
    graph: fx.Graph
    modules: dict[str, nn.Module]
    batch: int
    shapes: dict[fx.Node, tuple[int, ...]]
    constants: dict[fx.Node, Any]

    def module(self, node: fx.Node) -> nn.Module | None:
        """The module that a node calls, if any."""
        return self.modules[str(node.target)] if node.op == "call_module" else None

    def where(self, node: fx.Node) -> str:
        """Path of the module that a node calls; for a function, of its caller, and the node's name."""
        if node.op == "call_module":
            return str(node.target)
        return f"{caller}.{node.name}" if (caller := _caller(node)) else node.name

    def refuse(self, node: fx.Node, problem: str, remedy: str) -> ExportError:
        """An error that names the node and its module."""
        module = self.module(node)
        what = type(module).__name__ if module is not None else getattr(node.target, "__name__", str(node.target))
        if module is None and _caller(node):
            what = f"{what} in {type(self.modules[_caller(node)]).__name__}"
        return ExportError(
            f"cannot export {self.where(node)!r} ({what}, node {node.name!r} of {self.model}): {problem}; {remedy}"
        )


def _caller(node: fx.Node) -> str:
    """Path of the module whose code calls a function; empty for the model itself."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return stack[-1][0] if stack else ""


class _Recorder(fx.Interpreter):
    """Runs a graph and notes the shapes of tensors and the values of everything else."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        super().__init__(fx.GraphModule(model, graph))
        self.origins = dict(zip(self.graph.nodes, graph.nodes, strict=True))
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}
        self.constants: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.shapes[self.origins[n]] = tuple(result.shape)
        else:
            self.constants[self.origins[n]] = result
        return result


def trace_graph(model: nn.Module, example_input: Tensor) -> Traced:
    """Trace `model` in evaluation mode and run it on `example_input`; the model is left as it was.

    Args:
        example_input: (n, c, h, w) images, of any values and any n.
    Raises:
        DtypeError, ShapeError: `example_input` is not images.
        ModelError: the model cannot be traced, has no weights yet, or does not take `example_input`.
    """
    _check_example(example_input)
    _check_weights(model)
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    example = example_input if parameter is None else example_input.to(parameter.dtype)
    if len(example) == 1:  # two images: a batch of one cannot be told from a dimension that broadcasts
        example = example.repeat(2, 1, 1, 1)
    inputs = placed(model, example)
    with evaluation_mode(model):
        try:
            graph = trace(model)  # without values first: the batch's size stays a node, not a number
        except ModelError:
            _require_fit(model, inputs)
            graph = trace(model, inputs)
        recorder = _Recorder(model, graph)
        try:
            recorder.run(*placed(model, example))
        except Exception as error:
            raise _misfit(model, example, error) from error
    return Traced(
        model=type(model).__name__,
        graph=graph,
        modules=dict(model.named_modules(remove_duplicate=False)),
        batch=len(example),
        shapes=recorder.shapes,
        constants=recorder.constants,
    )


def _check_example(example_input: Any) -> None:
    if not isinstance(example_input, Tensor) or not example_input.is_floating_point():
        kind = example_input.dtype if isinstance(example_input, Tensor) else type(example_input).__name__
        raise DtypeError(f"example_input must be a floating-point tensor (n, c, h, w), got {kind}")
    if example_input.dim() != 4 or 0 in example_input.shape:
        raise ShapeError(
            f"example_input must be images (n, c, h, w), got the shape {tuple(example_input.shape)}; for one image: "
            "example_input=torch.zeros(1, 3, 32, 32)"
        )


def _check_weights(model: nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise ModelError(
                f"model must have initialised parameters, got the lazy {name!r}; run one forward pass first"
            )
        if tensor.is_meta:
            raise ModelError(f"model must have weights, got {name!r} on the meta device; load them first")


def _require_fit(model: nn.Module, inputs: tuple[Any, ...]) -> None:
    try:
        model(*placed(model, inputs))
    except Exception as error:
        raise _misfit(model, inputs[0], error) from error


def _misfit(model: nn.Module, example: Tensor, error: Exception) -> ModelError:
    problem = (str(error).strip() or "no message").splitlines()[0][:300]
    return ModelError(
        f"example_input must fit {type(model).__name__}, got {tuple(example.shape)} that fails with "
        f"{type(error).__name__}: {problem}; give images of the size that the model takes, of any number"
    )


def weights_of(tensor: Tensor) -> Tensor:
    """A parameter as the plan keeps it until it is written: on the CPU, in float32 or the model's wider type."""
    plain = tensor.detach().cpu()
    return plain if plain.dtype == torch.float64 else plain.float()
