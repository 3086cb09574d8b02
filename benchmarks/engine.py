"""The committed benchmarks of the native engine: trained ResNet-20, and ResNet-18 at CIFAR and ImageNet sizes.

    python benchmarks/engine.py --data ../shared/data/cifar10
    python benchmarks/engine.py --case resnet18-cifar --threads one --repeats 11

Each case is one `headgate bench`, which docs/benchmark.md explains; the first line of its JSON is the command. Install
the libraries with pip install 'headgate[bench]'; any that is missing is left out, with a note.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import tyro
from rich.console import Console

from headgate.benchmarking import Request
from headgate.benchmarking.show import run_shown
from headgate.errors import ConfigError, HeadgateError

RESULTS: Final = Path(__file__).parent / "results"

Case = Literal["resnet20-trained", "resnet18-cifar", "resnet18-imagenet"]

SYNTHETIC: Final = Request(
    models=("resnet18-cifar",), densities=(0.06, 0.2), masks=("iid", "clustered", "group"), groups=8
)
CASES: Final[dict[Case, Request]] = {
    "resnet20-trained": Request(
        models=("resnet20-cifar10-activation", "resnet20-cifar10-group"), dense="resnet20-cifar10-dense"
    ),
    "resnet18-cifar": SYNTHETIC,
    "resnet18-imagenet": replace(SYNTHETIC, models=("torchvision/resnet18",), batches=(1,)),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Run the committed benchmarks, or some of them, and write benchmarks/results/engine-<case>.json and .png.

    Attributes:
        case: which to run.
        data: folder or Hub name of CIFAR-10, for the trained case.
        against: all, or names of rivals as `headgate bench --help` lists them.
        density, mask: of the synthetic cases.
        batches: images of one call. Default: 1 and 32; at ImageNet size 1.
        threads: one (pinned to a core), all (that this process may use), or both.
        repeats: timed calls of each runner.
        isa: hold the engine and the libraries to this instruction set; results are named after it.
        out: folder for the results.
    """

    case: tuple[Case, ...] = tuple(CASES)
    data: str | None = None
    against: tuple[str, ...] = ("all",)
    density: tuple[float, ...] = SYNTHETIC.densities
    mask: tuple[Literal["iid", "clustered", "group"], ...] = SYNTHETIC.masks
    batches: tuple[int, ...] | None = None
    threads: tuple[Literal["one", "all"], ...] = ("one", "all")
    repeats: int = 31
    isa: Literal["avx2"] | None = None
    out: Path = RESULTS

    def request(self, case: Case) -> Request:
        """What one case asks for."""
        request = replace(CASES[case], against=self.against, threads=self.threads, repeats=self.repeats, held=self.isa)
        if self.batches is not None:
            request = replace(request, batches=self.batches)
        if request.kind == "trained":
            if self.data is None:
                raise ConfigError(f"data must be given for {case}: a folder with CIFAR-10, or its name on the Hub")
            return replace(request, data=self.data)
        return replace(request, densities=self.density, masks=self.mask)


def main() -> int:
    """Returns the exit code: 0, 1 for an error of use, 130 when interrupted."""
    options, console = tyro.cli(Options, description=__doc__), Console()
    try:
        requests = {case: options.request(case) for case in options.case}
        for case, request in requests.items():
            name = f"engine-{case}" + ("" if options.isa is None else f"-{options.isa}")
            run_shown(request, console, out=options.out / name)
    except HeadgateError as error:
        Console(stderr=True).print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt as interrupt:
        Console(stderr=True).print(str(interrupt) or "interrupted")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
