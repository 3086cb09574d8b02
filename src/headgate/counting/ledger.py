"""Executed MACs as a differentiable function of the open decisions, for training to a budget."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from headgate.counting.arithmetic import macs_per_open
from headgate.counting.layers import LayerCounts
from headgate.counting.passes import Batches, as_deployed, bare, named, run_batches
from headgate.counting.recorder import Recorder
from headgate.errors import ModelError


class MacLedger:
    """Knows what every gated layer costs, so that open decisions turn into MACs in a few small operations.

    Built from one forward pass in evaluation mode, which leaves no trace. Its methods take `open_counts`: for each name
    in `names` the layer's `Observation.open_counts`, (n, decisions); of a layer that runs several times for an image,
    their sum. They return float32 means over the batch, differentiable where the counts are. Binary MACs count as any
    others, one for one: the ratios are those of `Counts.mac_reduction`.

    Attributes:
        names: the gated layers that ran, in the order of execution.
        dense: their MACs per image without gates.
        fixed: their MACs per image whatever the gates decide: base paths and gate overhead.
        conditional: their MACs per image that the gates can skip.
        ungated: MACs per image of all other convolutions and linear layers.

    Args:
        model: gated.
        example: a batch of images (n, c, h, w), as the model takes them. What an open decision of an "fc" gate costs
            depends on the layer's live inputs: the example's are taken, on average.
    Raises: ModelError: no gated layer ran; or one ran several times at different costs.
    """

    def __init__(self, model: nn.Module, example: Batches) -> None:
        recorder = Recorder(named(model))
        with as_deployed(model), recorder.listening():
            run_batches(bare(model), example, limit=None, progress=False, around=recorder.batch)
        self._macs: dict[str, float] = {}  # of one open decision
        self._relative: dict[str, Tensor] = {}  # (decisions,) where one costs more than another
        self._skippable: dict[str, int] = {}
        self._cached: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self.dense = self.fixed = self.conditional = self.ungated = 0
        for layer in recorder.counts():
            if layer.gated:
                self._enter(layer, recorder.layers[layer.name].live_inputs)
            else:
                self.ungated += layer.dense_macs
        if not self._macs:
            raise ModelError(
                f"a ledger needs gated layers, got {type(model).__name__} with none that ran; call gate_ first"
            )
        self.names = tuple(self._macs)

    def _enter(self, layer: LayerCounts, live_inputs: list[Tensor]) -> None:
        name, macs = layer.name.split("#")[0], float(macs_per_open(layer.shape))
        if live_inputs:
            live = torch.cat(live_inputs).double().mean(0)  # (conv_groups,)
            mean = float(live.mean())
            macs *= mean
            if len(live) > 1 and mean:
                outputs = layer.shape.c_out // layer.shape.conv_groups
                self._relative[name] = (live / mean).float().repeat_interleave(outputs)
        if not math.isclose(self._macs.setdefault(name, macs), macs, rel_tol=1e-6):
            raise ModelError(
                f"a layer must cost the same each time it runs, got another map size or other live inputs in {name!r}"
            )
        self._skippable[name] = self._skippable.get(name, 0) + layer.dense_macs - layer.base_macs
        self.dense += layer.dense_macs
        self.fixed += layer.base_macs + layer.overhead_macs
        self.conditional += layer.dense_macs - layer.base_macs

    def executed(self, open_counts: Mapping[str, Tensor], *, network: bool = False) -> Float[Tensor, ""]:
        """MACs per image that the gated layers execute, overhead included.

        Args:   network: with `ungated`.
        Raises: ModelError: the names are not `names`.
        """
        opened, macs, _ = self._opened(open_counts)
        return torch.dot(opened, macs) + (self.fixed + (self.ungated if network else 0))

    def reduction(self, open_counts: Mapping[str, Tensor], *, network: bool = False) -> Float[Tensor, ""]:
        """Dense ÷ executed MACs; arguments as for `executed`."""
        return (self.dense + (self.ungated if network else 0)) / self.executed(open_counts, network=network)

    def density(self, open_counts: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """Fraction of the gated layers' conditional MACs executed; 1 where there are none."""
        opened, macs, _ = self._opened(open_counts)
        return torch.dot(opened, macs) / self.conditional if self.conditional else opened.new_ones(())

    def densities(self, open_counts: Mapping[str, Tensor]) -> Float[Tensor, " layers"]:
        """Fraction of each layer's conditional MACs executed, in the order of `names`."""
        opened, macs, skippable = self._opened(open_counts)
        return opened * macs / skippable

    def _opened(self, open_counts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """(layers,) each: open decisions per image, MACs of one, MACs that can be skipped."""
        if open_counts.keys() != self._macs.keys():
            missing, unknown = self._macs.keys() - open_counts.keys(), open_counts.keys() - self._macs.keys()
            raise ModelError(
                f"open_counts must have every gated layer that runs, got missing {sorted(missing)[:3]}, unknown "
                f"{sorted(unknown)[:3]}; build a new ledger where the model changed"
            )
        sums = []
        for name in self._macs:
            counts = open_counts[name]
            relative = self._relative.get(name)
            sums.append(counts.sum() if relative is None else (counts * relative.to(counts.device)).sum())
        opened = torch.stack(sums).float() / len(counts)
        cached = self._cached.get(opened.device)
        if cached is None:
            macs = torch.tensor(list(self._macs.values()), dtype=torch.float32, device=opened.device)
            skippable = torch.tensor([max(value, 1) for value in self._skippable.values()], device=opened.device)
            cached = self._cached[opened.device] = (macs, skippable.float())
        return opened, *cached
