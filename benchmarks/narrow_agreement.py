"""What narrow numbers do to the shipped networks: accuracy, and how many answers are those of float32.

    python benchmarks/narrow_agreement.py --precision int8 --data ../shared/data/cifar10
    python benchmarks/narrow_agreement.py --precision bfloat16 --data ../shared/data/cifar10

Ranges of 8-bit integers come from training images. The comparison is over all test images, in the native engine.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from datetime import date
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch

import headgate as hg
from headgate.files import write_atomic
from headgate.train import DataConfig
from headgate.train.data import load_in_memory
from headgate.train.prepare import evaluation_batches

RESULTS = Path(__file__).parent / "results"

Precision = Literal["int8", "bfloat16"]


def compare(name: str, precision: Precision, data: str, calibration: int, folder: Path) -> dict[str, float]:
    """Both plans of one network on all test images."""
    model = hg.pretrained(name)
    seen = None
    if precision == "int8":
        seen = model.preprocess(load_in_memory(data, "train", channels=3).images[:calibration].float() / 255)
    batches = [*evaluation_batches(model, DataConfig(source=data))]
    images = torch.cat([images for images, *_ in batches]).contiguous()
    labels = torch.cat([labels for _, labels, _ in batches]).numpy()
    answers = {}
    for of_plan, ranges in (("float32", None), (precision, seen)):
        path = folder / f"{name}-{of_plan}.hgplan"
        hg.export(model, path, example_input=images[:1], precision=of_plan, calibration=ranges)
        answers[of_plan] = hg.Engine(path, paths="sparse")(images).argmax(1)
    return {
        "images": len(labels),
        "top1_float32": float(np.mean(answers["float32"] == labels)),
        f"top1_{precision}": float(np.mean(answers[precision] == labels)),
        "agreement": float(np.mean(answers[precision] == answers["float32"])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=get_args(Precision), required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--data-name", default="CIFAR-10 (JPEG-75 copy)", help="what to call the data in the results")
    parser.add_argument("--calibration", type=int, default=512, help="training images for ranges of 8-bit integers")
    options = parser.parse_args()
    print(f"| network | top-1 % float32 | {options.precision} | same answer % |\n| --- | --- | --- | --- |")
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in hg.list_pretrained():
            found = results[name] = compare(name, options.precision, options.data, options.calibration, Path(folder))
            shares = (found["top1_float32"], found[f"top1_{options.precision}"], found["agreement"])
            print(f"| {name} | " + " | ".join(f"{100 * share:.2f}" for share in shares) + " |")
    command = f"python benchmarks/narrow_agreement.py --precision {options.precision} --data ../shared/data/cifar10"
    record = {
        "command": command,
        "data": options.data_name,
        **({"calibration": options.calibration} if options.precision == "int8" else {}),
        "date": date.today().isoformat(),
        "networks": results,
    }
    write_atomic(RESULTS / f"{options.precision}-agreement.json", json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
