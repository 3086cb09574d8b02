"""Fuse a model for training speed: norm, residual and ReLU run in one operator behind each convolution."""

from __future__ import annotations

import operator
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from headgate.errors import ModelError
from headgate.graph import is_residual_add, norm_activation, norm_obstacle, operation
from headgate.nn.gated_conv import GatedConv2d
from headgate.nn.gates import Gate
from headgate.nn.sum_norm import SumNorm
from headgate.ops.batch_norm import BatchNorm
from headgate.ops.norm_act import norm_act
from headgate.tracing import evaluation_mode, placed, trace


class NormAct(nn.Module):
    """A model's own batch norm, applied together with what follows it.

    Args:
        norm: shared with the model, not copied; its mode and statistics are the ones used.

    Attributes:
        sync: take the batch's statistics over all processes in training.
    """

    def __init__(self, norm: nn.BatchNorm2d | nn.SyncBatchNorm) -> None:
        super().__init__()
        self.norm = norm
        self.sync = isinstance(norm, nn.SyncBatchNorm)

    def forward(self, x: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        """act( BN(x) + residual ); in training, updates the norm's running statistics and its batch counter."""
        norm = self.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.momentum is not None
        if norm.training and norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
        state = BatchNorm(
            norm.weight,
            norm.bias,
            norm.running_mean,
            norm.running_var,
            norm.training,
            norm.momentum,
            norm.eps,
            self.sync,
        )
        return norm_act(x, state, residual, relu=relu)


def set_sync_(model: nn.Module, sync: bool = True) -> None:
    """Take the batch statistics of gated layers and of fused norms over all processes in training, or stop to.

    Batch norms that are neither gated nor fused are not reached: `nn.SyncBatchNorm.convert_sync_batchnorm` is theirs.
    """
    for module in model.modules():
        if isinstance(module, (SumNorm, NormAct, Gate)):
            module.sync = sync


def fuse(model: nn.Module, example_input: Any = None) -> fx.GraphModule:
    """The same network with fewer passes over memory, for training.

    The result shares every parameter, buffer and layer with `model`: to train it is to train `model`, and forcing,
    observing or shifting gates of one does it to both. Save and evaluate `model`.

    A gated convolution takes the residual sum and the ReLU behind it into its own call; every other BatchNorm2d does
    the same. Of two branches of a sum the one that is computed later takes the residual. Everything else stays.

    The graph is that of the mode `model` is in: control flow that depends on `self.training` is fixed then, as are
    optional arguments, at their defaults. Call `model.train()` first to train; fuse anew after changing the layers.

    Args:
        example_input: a batch, or a tuple of positional inputs. With it, sums of tensors of different shapes (that
            broadcast) are found and left alone; without it they raise ShapeError when the fused model runs.
    Raises: ModelError: the model cannot be traced, or `example_input` does not fit it; use it unfused.
    """
    graph = trace(model)
    if any(_is_constant(node, model) for node in graph.nodes):
        raise ModelError(
            f"model must not make tensors in forward to be fused, got {type(model).__name__}; register them as buffers"
        )
    if example_input is not None:
        _record_shapes(model, graph, example_input)
    _Fuser(model, graph).run()
    graph.lint()
    return fx.GraphModule(_attributes(model, graph), graph, type(model).__name__)


def _is_constant(node: fx.Node, model: nn.Module) -> bool:
    return node.op == "get_attr" and not hasattr(model, str(node.target).split(".")[0])


def _record_shapes(model: nn.Module, graph: fx.Graph, example_input: Any) -> None:
    """Note the shape of every node's result, from a run in evaluation mode."""
    with evaluation_mode(model):
        try:
            ShapeProp(fx.GraphModule(model, graph)).propagate(*placed(model, example_input))
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
            raise ModelError(
                f"example_input must fit {type(model).__name__}, got one that fails with {problem}"
            ) from error


class _Fuser:
    """Rewrites one graph in place. `heads` are the calls that can take a residual and a ReLU."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.graph = graph
        self.heads = {node for node in graph.nodes if self._is_head(node)}

    def run(self) -> None:
        for node in list(self.graph.nodes):
            if node.op == "call_module" and self._is_noop(node):
                node.replace_all_uses_with(node.args[0])
                self.graph.erase_node(node)
        for node in list(self.graph.nodes):
            if is_residual_add(node):
                self._fuse_add(node)
        for head in [node for node in self.graph.nodes if node in self.heads]:
            relu = self._only_relu(head)
            if relu is not None:
                self._rewrite(head, None, [relu])
            elif not isinstance(self.modules[str(head.target)], GatedConv2d):
                self._rewrite(head, None, [])

    def _is_head(self, node: fx.Node) -> bool:
        if node.op != "call_module" or len(node.args) != 1 or node.kwargs:
            return False
        module = self.modules[str(node.target)]
        if isinstance(module, GatedConv2d):
            return True
        if not isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm)) or norm_obstacle(module) is not None:
            return False
        act = norm_activation(module)
        return act is None or (isinstance(act, (nn.Identity, nn.ReLU)) and isinstance(module.drop, nn.Identity))

    def _is_noop(self, node: fx.Node) -> bool:
        """Passes its input on, in training too."""
        module = self.modules[str(node.target)]
        rate = getattr(module, "drop_prob", getattr(module, "p", None))
        is_drop = "drop" in type(module).__name__.lower()
        return type(module) is nn.Identity or (is_drop and isinstance(rate, (int, float)) and rate == 0)

    def _has_own_relu(self, head: fx.Node) -> bool:
        return isinstance(norm_activation(self.modules[str(head.target)]), nn.ReLU)

    def _only_relu(self, node: fx.Node) -> fx.Node | None:
        user = next(iter(node.users)) if len(node.users) == 1 else None
        return user if user is not None and operation(user, self.modules) == "relu" else None

    def _fuse_add(self, add: fx.Node) -> None:
        relu = self._only_relu(add)
        operands = [a for a in add.args if isinstance(a, fx.Node)]
        free = [a for a in operands if a in self.heads and len(a.users) == 1 and not self._has_own_relu(a)]
        shapes = {getattr(a.meta.get("tensor_meta"), "shape", None) for a in operands}
        if relu is None or not free or len(shapes) > 1:
            return
        order = list(self.graph.nodes)
        head = max(free, key=order.index)
        residual = operands[1] if operands[0] is head else operands[0]
        if any(self._in_place(node) for node in order[order.index(head) + 1 : order.index(add)]):
            return  # it might change what is added
        self._rewrite(head, residual, [add, relu])

    def _in_place(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return bool(getattr(self.modules[str(node.target)], "inplace", False))
        name = getattr(node.target, "__name__", str(node.target))
        iadds = (operator.iadd, operator.imul, operator.isub, operator.itruediv, operator.setitem)
        return node.target in iadds or name.endswith("_") or bool(node.kwargs.get("inplace", False))

    def _rewrite(self, head: fx.Node, residual: fx.Node | None, absorbed: list[fx.Node]) -> None:
        """Call `head` with what it absorbs; after its residual, where that is computed later."""
        self.heads.discard(head)
        relu = bool(absorbed) or self._has_own_relu(head)
        order = list(self.graph.nodes)
        late = residual is not None and order.index(residual) > order.index(head)
        with self.graph.inserting_after(residual if late else head):
            call = self.graph.call_module(str(head.target), (head.args[0], residual, relu))
        call.meta = dict(head.meta)
        (absorbed[-1] if absorbed else head).replace_all_uses_with(call)
        for node in [*reversed(absorbed), head]:
            self.graph.erase_node(node)


def _attributes(model: nn.Module, graph: fx.Graph) -> dict[str, Any]:
    """What the graph refers to: the model's own objects, with a `NormAct` around each fused norm."""
    attributes: dict[str, Any] = {}
    for node in graph.nodes:
        if node.op not in ("call_module", "get_attr"):
            continue
        target = str(node.target)
        value = operator.attrgetter(target)(model)
        is_norm = isinstance(value, (nn.BatchNorm2d, nn.SyncBatchNorm))
        fused = node.op == "call_module" and len(node.args) == 3 and is_norm
        attributes[target] = NormAct(value) if fused else value
    return attributes
