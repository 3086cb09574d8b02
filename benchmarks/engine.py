"""The committed benchmarks of the native engine: trained ResNet-20, and ResNet-18 at CIFAR and ImageNet sizes.

    python benchmarks/engine.py --data ../shared/data/cifar10
    python benchmarks/engine.py --case resnet18-cifar --threads one --repeats 11
    python benchmarks/engine.py --case resnet18-cifar --threads one --isa avx2 --density 0.06 --mask iid group

Each case is one `headgate bench`, which docs/benchmark.md explains; the first line of its JSON is the command. Install
the libraries with pip install 'headgate[bench]'; any that is missing is left out, with a note.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import tyro
from rich.console import Console

from headgate.benchmarking import Request
from headgate.benchmarking.show import run_shown
from headgate.errors import ConfigError, HeadgateError

RESULTS: Final = Path(__file__).parent / "results"

Case = Literal[
    "resnet20-trained", "resnet18-cifar", "resnet18-imagenet", "resnet18-cifar-int8", "resnet18-cifar-bfloat16"
]

SYNTHETIC: Final = Request(
    models=("resnet18-cifar",), densities=(0.06, 0.2), masks=("iid", "clustered", "group"), groups=8
)
CASES: Final[dict[Case, Request]] = {
    "resnet20-trained": Request(
        models=("resnet20-cifar10-activation", "resnet20-cifar10-group"), dense="resnet20-cifar10-dense"
    ),
    "resnet18-cifar": SYNTHETIC,
    "resnet18-imagenet": replace(SYNTHETIC, models=("torchvision/resnet18",), batches=(1,)),
    "resnet18-cifar-int8": replace(
        SYNTHETIC,
        densities=(0.06,),
        masks=("iid", "group"),
        precisions=("int8", "float32"),
        against=("onnxruntime", "openvino", "bf16"),
    ),
    "resnet18-cifar-bfloat16": replace(
        SYNTHETIC,
        densities=(0.06,),
        masks=("iid", "group"),
        precisions=("bfloat16", "float32"),
        against=("onnxruntime", "openvino", "bf16"),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Run the committed benchmarks, or some of them, and write their figures and pictures.

    They are benchmarks/results/engine-<case>.json and .png; with --isa and --threads all, those are in the name, too.

    Attributes:
        case: which to run.
        data: folder or Hub name of CIFAR-10, for the trained case.
        against: all, or names of rivals as `headgate bench --help` lists them. Default: the case's.
        density, mask: of the synthetic cases. Default: the case's.
        batches: images of one call. Default: 1 and 32; at ImageNet size 1.
        threads: one (pinned to a core), all (that this process may use), or both.
        repeats: timed calls of each runner.
        isa: hold the engine and the libraries to this instruction set.
        out: folder for the results.
    """

    case: tuple[Case, ...] = tuple(CASES)
    data: str | None = None
    against: tuple[str, ...] | None = None
    density: tuple[float, ...] | None = None
    mask: tuple[Literal["iid", "clustered", "group"], ...] | None = None
    batches: tuple[int, ...] | None = None
    threads: tuple[Literal["one", "all"], ...] = ("one", "all")
    repeats: int = 31
    isa: Literal["avx2"] | None = None
    out: Path = RESULTS

    def request(self, case: Case) -> Request:
        """What one case asks for."""
        given: dict[str, Any] = {"against": self.against, "batches": self.batches}
        if CASES[case].kind == "synthetic":
            given |= {"densities": self.density, "masks": self.mask}
        elif self.data is None:
            raise ConfigError(f"data must be given for {case}: a folder with CIFAR-10, or its name on the Hub")
        else:
            given |= {"data": self.data}
        asked = {name: value for name, value in given.items() if value is not None}
        return replace(CASES[case], threads=self.threads, repeats=self.repeats, held=self.isa, **asked)

    def results(self, case: Case) -> Path:
        """Where one case's results go, without a suffix."""
        marks = [self.isa] if self.isa is not None else []
        marks += ["all-threads"] if self.threads == ("all",) else []
        return self.out / "-".join(("engine", case, *marks))


def main() -> int:
    """Returns the exit code: 0, 1 for an error of use, 130 when interrupted."""
    options, console = tyro.cli(Options, description=__doc__), Console()
    try:
        requests = {case: options.request(case) for case in options.case}
        for case, request in requests.items():
            run_shown(request, console, out=options.results(case))
    except HeadgateError as error:
        Console(stderr=True).print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt as interrupt:
        Console(stderr=True).print(str(interrupt) or "interrupted")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
