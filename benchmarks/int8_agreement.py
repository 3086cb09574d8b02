"""What 8-bit integers do to the shipped networks: accuracy, and how many answers are those of float32.

    python benchmarks/int8_agreement.py --data ../shared/data/cifar10

Ranges come from training images, the comparison is over all test images, both plans run in the native engine.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from datetime import date
from pathlib import Path

import numpy as np
import torch

import headgate as hg
from headgate.files import write_atomic
from headgate.train import DataConfig
from headgate.train.data import load_in_memory
from headgate.train.prepare import evaluation_batches

RECORD = Path(__file__).parent / "results" / "int8-agreement.json"


def compare(name: str, data: str, calibration: int, folder: Path) -> dict[str, float]:
    """Both plans of one network on all test images."""
    model = hg.pretrained(name)
    seen = model.preprocess(load_in_memory(data, "train", channels=3).images[:calibration].float() / 255)
    batches = [*evaluation_batches(model, DataConfig(source=data))]
    images = torch.cat([images for images, *_ in batches]).contiguous()
    labels = torch.cat([labels for _, labels, _ in batches]).numpy()
    answers = {}
    for precision in ("float32", "int8"):
        path = folder / f"{name}-{precision}.hgplan"
        ranges = {"precision": "int8", "calibration": seen} if precision == "int8" else {}
        hg.export(model, path, example_input=images[:1], **ranges)
        answers[precision] = hg.Engine(path, paths="sparse")(images).argmax(1)
    return {
        "images": len(labels),
        "top1_float32": float(np.mean(answers["float32"] == labels)),
        "top1_int8": float(np.mean(answers["int8"] == labels)),
        "agreement": float(np.mean(answers["int8"] == answers["float32"])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--data-name", default="CIFAR-10 (JPEG-75 copy)", help="what to call the data in the results")
    parser.add_argument("--calibration", type=int, default=512, help="training images that ranges are taken from")
    options = parser.parse_args()
    print("| network | top-1 % float32 | int8 | same answer % |\n| --- | --- | --- | --- |")
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in hg.list_pretrained():
            found = results[name] = compare(name, options.data, options.calibration, Path(folder))
            shares = (found["top1_float32"], found["top1_int8"], found["agreement"])
            print(f"| {name} | " + " | ".join(f"{100 * share:.2f}" for share in shares) + " |")
    record = {
        "command": "python benchmarks/int8_agreement.py --data ../shared/data/cifar10",
        "data": options.data_name,
        "calibration": options.calibration,
        "date": date.today().isoformat(),
        "networks": results,
    }
    write_atomic(RECORD, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
