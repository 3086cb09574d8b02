"""Operators as they are being written, and the tensors of the graph that they stand for."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from torch import fx

from headgate.errors import ExportError
from headgate.exporting.plan import Operator, Shape
from headgate.exporting.trace_graph import Traced

REPLACE: Final = "replace it in the model, or export the part of the model up to it"
BATCH: Final = "treat every image of a batch by itself, the same way"


class Item(NamedTuple):
    """A tensor of the graph: the value that holds it, and its shape in torch, without the batch.

    The shape is another than the value's where it was flattened: the same numbers in torch's order.
    """

    value: int
    shape: tuple[int, ...]


class Builder:
    """What handlers of single nodes read and write.

    Attributes:
        values: shapes, the input's first.
        operators: in order of execution.
        items: of the nodes so far.
        vanished: names of what does nothing in evaluation.
    """

    def __init__(self, traced: Traced) -> None:
        self.traced = traced
        self.values: list[Shape] = []
        self.operators: list[Operator] = []
        self.items: dict[fx.Node, Item] = {}
        self.vanished: list[str] = []
        self._names: Counter[str] = Counter()

    def refuse(self, node: fx.Node, problem: str, remedy: str = REPLACE) -> ExportError:
        """The error for a node that a plan cannot express."""
        return self.traced.refuse(node, problem, remedy)

    # --------------------------------------------------------------------------------------------------------- operands

    def item(self, node: fx.Node, operand: Any) -> Item:
        """What an operand of `node` is.

        Raises: ExportError: it does not come from the images.
        """
        if isinstance(operand, fx.Node) and operand in self.items:
            return self.items[operand]
        what = f"{operand.name!r}" if isinstance(operand, fx.Node) else repr(operand)
        raise self.refuse(node, f"expected operands that are computed from the images, got {what}")

    def first(self, node: fx.Node) -> Item:
        """The first operand."""
        return self.item(node, node.args[0] if node.args else node.kwargs.get("input"))

    def map(self, node: fx.Node, item: Item | None = None) -> int:
        """The value of an operand, the first by default, that must be a map or a vector as the plan has it.

        Raises: ExportError: it was flattened or reshaped otherwise.
        """
        value, shape = item if item is not None else self.first(node)
        own = self.values[value]
        vector = own[1:] == (1, 1) and math.prod(shape) == shape[0]
        if shape != own and not vector:
            problem = f"expected a map (channels, height, width), got {shape} made from a map of {own}"
            raise self.refuse(node, problem, "flatten only in front of linear layers")
        return value

    def settings(self, node: fx.Node, names: Mapping[str, Any]) -> dict[str, Any]:
        """A module's attributes, or a function's arguments behind the first, by `names`, which come with defaults.

        Raises: ExportError: there are others.
        """
        module = self.traced.module(node)
        if module is not None:
            return {name: getattr(module, name, default) for name, default in names.items()}
        positional = node.args[1:]
        given: dict[str, Any] = dict(zip(names, positional, strict=False))
        given |= {name: value for name, value in node.kwargs.items() if name not in ("input", "tensors")}
        unknown = [name for name in given if name not in names]
        if len(positional) > len(names) or unknown:
            raise self.refuse(node, f"expected the arguments {', '.join(names)}, got {[*positional, *unknown]}")
        constants = {name: fx.node.map_arg(value, self.traced.constants.get) for name, value in given.items()}
        return {**names, **constants}

    # ---------------------------------------------------------------------------------------------------------- results

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """Of a node's result in torch, without the batch."""
        return self.traced.shapes[node][1:]

    def emit(self, node: fx.Node, kind: Any, *inputs: int, shape: Shape | None = None, **attributes: Any) -> None:
        """Append an operator of a class, whose result is the node's.

        Args:
            shape: of the result; by default torch's, of a map or a vector.
        """
        own = self.shape(node)
        output = len(self.values)
        if shape is None:
            shape = (own[0], own[1], own[2]) if len(own) == 3 else (own[0], 1, 1)
        self.values.append(shape)
        self.operators.append(kind(name=self._name(node), inputs=inputs, output=output, **attributes))
        self.items[node] = Item(output, own)

    def alias(self, node: fx.Node) -> None:
        """The node's result is its first operand, in torch's shape; whoever reads it must be able to take the map."""
        self.items[node] = Item(self.first(node).value, self.shape(node))

    def overwrite(self, node: fx.Node) -> None:
        """The node wrote over its first operand: every name of that tensor means the result from now on."""
        old, new = self.first(node).value, self.items[node].value
        self.items |= {n: item._replace(value=new) for n, item in self.items.items() if item.value == old}

    def _name(self, node: fx.Node) -> str:
        name = self.traced.where(node)
        self._names[name] += 1
        return name if self._names[name] == 1 else f"{name}#{self._names[name]}"
