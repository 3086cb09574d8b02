"""What a gated training step costs, against the dense one of the same network, in one process.

    python benchmarks/training_step.py [--threads 1] [--json benchmarks/results/training_step.json]

One step is forward, loss and backward of ResNet-20 at batch 128 in bfloat16 (autocast), channels_last. Variants take
turns; medians over the repeats. "eager" is the model as it is in plain torch; "fused" is what `headgate train` runs.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from headgate.convert import gate_
from headgate.fusion import fuse
from headgate.models import create
from headgate.nn import GateConfig
from headgate.ops.native import available
from headgate.train.allocator import keep_freed_memory


def make_step(model: nn.Module, *, fused: bool, batch: int, bf16: bool) -> Callable[[], None]:
    model = model.to(memory_format=torch.channels_last).train()
    trained = fuse(model) if fused else model
    images = torch.randn(batch, 3, 32, 32).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (batch,))

    def step() -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = trained(images)
        F.cross_entropy(logits.float(), labels).backward()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, torch.get_num_threads()])
    parser.add_argument("--fp32", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    keep_freed_memory()

    dense = create(options.model)
    variants = {"dense eager": make_step(dense, fused=False, batch=options.batch, bf16=not options.fp32)}
    variants["dense fused"] = make_step(copy.deepcopy(dense), fused=True, batch=options.batch, bf16=not options.fp32)
    for granularity in ("activation", "group"):
        for shuffle in (False, True):
            gated = copy.deepcopy(dense)
            config = GateConfig(groups=options.groups, granularity=granularity, shuffle=shuffle)  # type: ignore[arg-type]
            gate_(gated, config, example_input=torch.zeros(1, 3, 32, 32))
            name = f"{granularity}{' + shuffle' if shuffle else ''} fused"
            variants[name] = make_step(gated, fused=True, batch=options.batch, bf16=not options.fp32)

    result: dict[str, object] = {
        "command": "python benchmarks/training_step.py",
        "model": options.model,
        "groups": options.groups,
        "batch": options.batch,
        "dtype": "fp32" if options.fp32 else "bf16",
        "native": available(),
        "machine": platform.processor() or platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "date": date.today().isoformat(),
    }
    for threads in dict.fromkeys(options.threads):
        torch.set_num_threads(threads)
        times: dict[str, list[float]] = {name: [] for name in variants}
        for repeat in range(options.repeats + 2):
            for name, step in variants.items():
                start = time.perf_counter()
                step()
                if repeat >= 2:  # warm up
                    times[name].append(1e3 * (time.perf_counter() - start))
        medians = {name: statistics.median(values) for name, values in times.items()}
        print(f"{options.model}, batch {options.batch}, {result['dtype']}, {threads} thread(s), native={available()}")
        for name, ms in medians.items():
            eager, fused = medians["dense eager"], medians["dense fused"]
            print(f"  {name:28s} {ms:8.1f} ms   {ms / eager:5.2f}× dense eager   {ms / fused:5.2f}× dense fused")
        result[f"threads_{threads}_ms"] = {name: round(ms, 2) for name, ms in medians.items()}
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
