"""What is timed: networks, as libraries and as the engine run them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from headgate.benchmarking.libraries.library import Images
from headgate.benchmarking.record import Gated, NetworkKind
from headgate.benchmarking.request import Dtype
from headgate.exporting.plan import Plan

__all__ = ["Network", "Planned", "Subject"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Planned:
    """A network as the engine runs it.

    Attributes:
        dtype: that it computes in.
        path: of the plan file.
        macs: of one image; of a gated network the executed ones, on average.
        about: of a gated network.
    """

    dtype: Dtype
    path: Path
    macs: int
    about: Gated | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Network:
    """A network that is timed.

    Attributes:
        name: for people.
        kind: what it is.
        module: plain layers for libraries; None of a gated network, which only the engine runs.
        images: (n, c, h, w) that it runs on.
        plans: for the engine, one for each precision that is asked for.
    """

    name: str
    kind: NetworkKind
    module: nn.Module | None
    images: Images
    plans: tuple[Planned, ...]

    @property
    def macs(self) -> int:
        """See `Planned.macs`; of the first plan, as rounding tips some decisions."""
        return self.plans[0].macs


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """What is timed, before it is gated or pruned.

    Attributes:
        name: of the network.
        images: what networks without gates run on.
        dense: what libraries run.
        folder: for plan files.
        precisions: that plans are exported in; a plan file's own.
        plan: what is timed where that is a plan file.
    """

    name: str
    images: Images
    dense: Network
    folder: Path
    precisions: tuple[Dtype, ...]
    plan: Plan | None = None
