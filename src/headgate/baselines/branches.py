"""Residual branches of a network's graph: what each sum adds, and networks without some of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from torch import fx, nn

from headgate.baselines.channels import graph_over
from headgate.errors import ModelError
from headgate.graph import find_layer, is_residual_add

__all__ = ["drop_branch_", "layer_names", "residual_sums", "without_layers"]


def layer_names(model: nn.Module) -> list[str]:
    """The convolutions and linear layers of a model."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]


def residual_sums(traced: fx.GraphModule) -> Iterator[tuple[fx.Node, dict[fx.Node, tuple[str, ...]]]]:
    """Every residual sum, and of both its operands the layers that it is computed from and the other is not.

    Layers are convolutions and linear layers, in the order in which they run.
    """
    layers = {*layer_names(traced)}
    behind: dict[fx.Node, dict[str, None]] = {}  # the layers that a node is computed from; a set that keeps its order
    for node in traced.graph.nodes:
        behind[node] = {name: None for operand in node.all_input_nodes for name in behind[operand]}
        if node.op == "call_module" and node.target in layers:
            behind[node][str(node.target)] = None
        if is_residual_add(node):
            left, right = node.all_input_nodes
            pairs = ((left, right), (right, left))
            yield node, {one: tuple(name for name in behind[one] if name not in behind[other]) for one, other in pairs}


def without_layers(model: nn.Module, names: Collection[str]) -> fx.GraphModule:
    """A dense model as its graph in evaluation mode, without the residual branches that these layers make up.

    Args:
        model: the result's layers are its own, not copies.
        names: convolutions and linear layers, all those of each branch: what `remove` reports as dropped.
    Raises: ModelError: the model is gated, or cannot be traced; or `names` are not those of residual branches.
    """
    for name in names:
        find_layer(model, name, (nn.Conv2d, nn.Linear), "a convolution or linear layer")
    smaller = graph_over(model, None)
    while drop_branch_(smaller, _made_of(smaller, names)):
        pass
    left = layer_names(smaller)
    stay = [name for name in names if name in left]
    if stay:
        raise ModelError(
            f"layers must make up residual branches of {type(model).__name__} to be dropped, got {stay[0]!r} that does "
            "not, or not alone"
        )
    return smaller


def _made_of(traced: fx.GraphModule, names: Collection[str]) -> dict[str, str]:
    """Names of the sums, and of one operand of each that nothing but these layers makes other than the other one."""
    return {
        add.name: operand.name
        for add, operands in residual_sums(traced)
        for operand, layers in operands.items()
        if layers and {*layers} <= {*names}
    }


def drop_branch_(traced: fx.GraphModule, operands: Mapping[str, str]) -> bool:
    """Take one operand out of a sum, in place, and with it what only it is computed from.

    Args:    operands: names of sums, and of the operand of each that may go.
    Returns: False where there was none to take out.
    """
    graph = traced.graph
    order = {node: place for place, node in enumerate(graph.nodes)}
    for add in order:
        if add.name not in operands:
            continue
        gone, other = sorted(add.all_input_nodes, key=lambda operand: operand.name != operands[add.name])
        if any(order[user] > order[add] for user in other.users):
            continue  # what follows the sum may write over it, and would then write over this
        add.replace_all_uses_with(other)
        graph.erase_node(add)
        _erase_unread_(graph, gone)
        traced.delete_all_unused_submodules()
        traced.recompile()
        return True
    return False


def _erase_unread_(graph: fx.Graph, node: fx.Node) -> None:
    """Erase a node that nothing reads, and whatever only it read."""
    if not node.users and node.op != "placeholder":
        operands = node.all_input_nodes
        graph.erase_node(node)
        for operand in operands:
            _erase_unread_(graph, operand)
