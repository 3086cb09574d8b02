"""`headgate bench`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from rich.console import Console
from tyro.conf import Positional


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Time a network in the native engine, in other inference libraries, and pruned statically; docs/benchmark.md.

    A trained model decides on real images. An architecture, with --density and --mask, is timed with synthetic weights
    and images. A plan file is compared with the dense network that it was gated from, rebuilt from the file.

    Attributes:
        models: run folders, checkpoints or pretrained names, of one architecture; or an architecture; or a plan file.
        against: all, or any of torch, torch-channels-last, torch-compile, onnxruntime, openvino, ncnn, bf16 and int8
            (the dense network in that dtype), grouped and thinner (the network pruned statically to the same MACs).
            None: nothing.
        data: folder or Hub name of a trained model's images, or an .npy file of prepared ones; of a plan, such a file.
            Default: those that the run was trained on; white noise for a plan.
        dense: the trained dense counterpart. Default: the first model with its gates held open; a plan has no other.
        density: synthetic: share of open decisions of every gated layer.
        mask: synthetic: independent decisions, clustered ones, or one for each pixel and output group.
        groups: synthetic: G.
        image: synthetic: channels, height and width. Default: what the architecture was designed for.
        precision: of the engine's plans; libraries run the network in the same. bfloat16 and int8 are for convolutions.
        batches: images of one call.
        threads: one (pinned to a core), all (that this process may use), or both.
        repeats: timed calls of each runner; medians are compared.
        isa: hold the engine and the libraries to this instruction set.
        out: write the figures to <out>.json and a picture to <out>.png.
    """

    models: Positional[tuple[str, ...]]
    against: tuple[str, ...] = ("all",)
    data: str | None = None
    dense: str | None = None
    density: tuple[float, ...] = ()
    mask: tuple[Literal["iid", "clustered", "group"], ...] = ()
    groups: int = 8
    image: tuple[int, int, int] | None = None
    precision: tuple[Literal["float32", "bfloat16", "int8"], ...] = ("float32",)
    batches: tuple[int, ...] = (1, 32)
    threads: tuple[Literal["one", "all"], ...] = ("one", "all")
    repeats: int = 31
    isa: Literal["avx2"] | None = None
    out: Path | None = None

    def run(self, console: Console) -> None:
        from headgate.benchmarking import Request
        from headgate.benchmarking.show import run_shown

        options = {field.name: getattr(self, field.name) for field in fields(self)}
        out, held = options.pop("out"), options.pop("isa")
        request = Request(
            densities=options.pop("density"),
            masks=options.pop("mask"),
            precisions=options.pop("precision"),
            held=held,
            **options,
        )
        run_shown(request, console, out=out)
