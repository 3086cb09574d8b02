"""Time the training operators, forward and backward: native, the reference in eager torch, and torch's BN + ReLU.

    python benchmarks/training_op.py [--out FILE.json] [--quick]

The contestants run in one process, interleaved, so that drift of the clock and of other load meets all alike; the
median of the repeats counts: of CPU time on one thread, of wall time on several. Batch 128, the shapes of ResNet-20's
three stages. Nothing is timed before the native result agreed with the reference's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from headgate.ops import native
from headgate.ops.batch_norm import BatchNorm
from headgate.ops.gated_norm import gated_norm
from headgate.ops.gated_norm import reference as gated_reference
from headgate.ops.norm_act import norm_act
from headgate.ops.norm_act import reference as norm_reference

BATCH = 128
STAGES = ((16, 32), (32, 16), (64, 8))  # channels, height and width
GROUPS = 4
SLOPE = 2.0
Call = Callable[[], tuple[Tensor, list[Tensor]]]  # output and the leaves it depends on


def _norm(channels: int) -> BatchNorm:
    ones, zeros = torch.ones(channels, requires_grad=True), torch.zeros(channels, requires_grad=True)
    return BatchNorm(ones, zeros, torch.zeros(channels), torch.ones(channels), True, momentum=0.0)


def contestants(channels: int, size: int, dtype: torch.dtype) -> dict[str, dict[str, Call]]:
    """By operator and variant, then by implementation."""

    def leaf(channels: int) -> Tensor:
        x = torch.randn(BATCH, channels, size, size).to(dtype)
        return x.contiguous(memory_format=torch.channels_last).requires_grad_()

    sums, x, residual = leaf(2 * channels), leaf(channels), leaf(channels)
    final, partial, threshold = _norm(channels), _norm(channels), torch.ones(channels, requires_grad=True)
    per_group, score_var = torch.ones(GROUPS, requires_grad=True), torch.ones(GROUPS)

    def gated(threshold: Tensor, score_var: Tensor | None, residual: Tensor | None) -> dict[str, Call]:
        leaves = [t for t in (sums, threshold, residual) if t is not None]

        def ours() -> tuple[Tensor, list[Tensor]]:
            return gated_norm(sums, None, final, partial, threshold, score_var, residual, slope=SLOPE, relu=True)[
                0
            ], leaves

        def theirs() -> tuple[Tensor, list[Tensor]]:
            return gated_reference.gated_norm(
                *sums.chunk(2, 1), final, partial, threshold, score_var, residual, slope=SLOPE, relu=True
            )[0], leaves

        return {"native": ours, "reference": theirs}

    def dense(residual: Tensor | None) -> dict[str, Call]:
        leaves = [x] if residual is None else [x, residual]

        def torchs() -> tuple[Tensor, list[Tensor]]:
            y = F.batch_norm(x, final.running_mean, final.running_var, final.weight, final.bias, training=True)
            return F.relu(y if residual is None else y + residual), leaves

        return {
            "native": lambda: (norm_act(x, final, residual, relu=True), leaves),
            "reference": lambda: (norm_reference.norm_act(x, final, residual, relu=True), leaves),
            "torch": torchs,
        }

    return {
        "gated_norm activation": gated(threshold, None, None),
        "gated_norm activation residual": gated(threshold, None, residual),
        "gated_norm group": gated(per_group, score_var, None),
        "norm_act": dense(None),
        "norm_act residual": dense(residual),
    }


def measure(calls: dict[str, Call], repeats: int) -> dict[str, dict[str, float]]:
    """Median milliseconds of the forward pass and of both passes, for each implementation."""
    (output, _), (expected, _) = calls["native"](), calls["reference"]()
    error = (output - expected).abs().float()
    disagree = float((error > 0.02 * (1 + expected.abs())).float().mean())
    if not disagree < 1e-3:  # decisions within rounding of the threshold may differ
        raise SystemExit(f"the native operator disagrees with the reference in {disagree:.2%} of its values")
    grad = torch.randn_like(output)
    # On one thread its CPU time: other processes on the machine do not count.
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    forward: dict[str, list[float]] = {name: [] for name in calls}
    both: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 2):
        for name, call in calls.items():
            start = clock()
            output, leaves = call()
            middle = clock()
            output.backward(grad)
            both[name].append(clock() - start)
            forward[name].append(middle - start)
            for tensor in leaves:
                tensor.grad = None
            del output
    return {
        name: {
            "forward_ms": round(1e3 * statistics.median(forward[name][2:]), 3),
            "total_ms": round(1e3 * statistics.median(both[name][2:]), 3),
        }
        for name in calls
    }


def results(quick: bool) -> Iterator[dict[str, object]]:
    repeats = 3 if quick else 15
    cores = len(os.sched_getaffinity(0))
    for threads in dict.fromkeys((1, cores)):
        torch.set_num_threads(threads)
        for dtype in (torch.bfloat16, torch.float32):
            for channels, size in STAGES[-1:] if quick else STAGES:
                for operator, calls in contestants(channels, size, dtype).items():
                    yield {
                        "operator": operator,
                        "batch": BATCH,
                        "channels": channels,
                        "size": size,
                        "dtype": str(dtype).removeprefix("torch."),
                        "threads": threads,
                        "times": measure(calls, repeats),
                    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the results here as JSON")
    parser.add_argument("--quick", action="store_true", help="the smallest shape, few repeats")
    options = parser.parse_args()
    extension = native.module()
    if extension is None:
        raise SystemExit("headgate._native is not built, or HEADGATE_NATIVE=0: nothing to compare")
    header = {"isa": extension.active_isa(), "torch": torch.__version__, "machine": platform.machine()}
    print(f"{header}; milliseconds, forward + backward (forward)")
    rows = []
    for row in results(options.quick):
        rows.append(row)
        times: dict[str, dict[str, float]] = row["times"]  # type: ignore[assignment]
        shown = "  ".join(f"{name} {t['total_ms']:7.2f} ({t['forward_ms']:6.2f})" for name, t in times.items())
        shape = f"{row['channels']:3}@{row['size']:<2}"
        print(f"{row['threads']} thread  {row['dtype']:8}  {shape}  {row['operator']:31} {shown}", flush=True)
    if options.out is not None:
        options.out.write_text(json.dumps({**header, "results": rows}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
