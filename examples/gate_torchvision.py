"""Gate a torchvision network, see what was gated, and count what random gates would save.

python examples/gate_torchvision.py [builder]
"""

from __future__ import annotations

import sys

import torch
import torchvision

import headgate as hg


def main(builder: str = "resnet18") -> None:
    model = torchvision.models.get_model(builder, weights=None).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        before = model(images)

    report = hg.gate_(model, hg.GateConfig(groups=8, granularity="activation"), example_input=images)
    print(report)

    with torch.no_grad(), hg.force_gates(model, "open"):
        print("largest difference with every gate open:", float((model(images) - before).abs().max()))
    for shift in (0.0, 1.0):
        hg.shift_thresholds_(model, shift)
        counts = hg.count(model, images)
        print(f"thresholds {shift:+}: {counts.mac_reduction:.2f}× fewer MACs at density {counts.density:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
