"""Put a finished run into the package as a pretrained model, with its card.

python benchmarks/ship.py runs/cifar10/resnet20/activation4-s0 resnet20-cifar10-activation
"""

from __future__ import annotations

import argparse
import json
from datetime import date
from pathlib import Path
from typing import Any

from headgate.checkpoint import load, save
from headgate.files import write_atomic

PRETRAINED = Path(__file__).parent.parent / "src" / "headgate" / "pretrained"
MAX_BYTES = 5_000_000

CARD = """# {name}

| | |
| --- | --- |
| network | {architecture}, {width} channels wide, {classes} classes |
| gates | {gates} |
| data | CIFAR-10 (JPEG-75 copy): the original images passed once through JPEG at quality 75 |
| top-1, {images} test images, float32 | {accuracy:.2f} % |
| MAC reduction, gated layers | {mac_reduction} |
| MAC reduction, whole network | {network_mac_reduction} |
| training | {epochs} epochs{start}, seed {seed}, bfloat16 on one CPU core, {hours:.1f} h |
| command | `python benchmarks/cifar10.py --data ../shared/data/cifar10 --protocol {protocol} --only {variant} {seed}` |
| date | {date} |

Input: RGB, 32×32, in [0, 1], through `model.preprocess`. Intended for demonstrations, tests and benchmarks of channel
gating; the data's licence covers research use. The README's table has the other seeds and what to compare with.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    options = parser.parse_args()
    recipe = json.loads((options.run / "recipe.json").read_text())
    summary = json.loads((options.run / "summary.json").read_text())
    images = json.loads((options.run / "counts.json").read_text())["images"]
    gate = recipe["gate"]
    gates = "none: the dense network"
    reductions = ("1×", "1×")
    if gate is not None:
        shuffle = ", shuffle" if gate["shuffle"] else ""
        gates = f"{gate['granularity']}, G = {gate['groups']}{shuffle}, {gate['norm']} norms"
        reductions = (f"{summary['mac_reduction']:.2f}×", f"{summary['network_mac_reduction']:.2f}×")

    if (options.run / "model.safetensors").stat().st_size > MAX_BYTES:
        raise SystemExit(f"{options.name} is larger than {MAX_BYTES} bytes; ship a smaller model")
    PRETRAINED.mkdir(exist_ok=True)
    target = PRETRAINED / f"{options.name}.safetensors"
    model = load(options.run / "model.safetensors")
    figures = ("accuracy", "mac_reduction", "network_mac_reduction", "density", "epochs", "seed")
    save(model, target, metadata={key: summary[key] for key in figures} | {"data": "CIFAR-10 (JPEG-75 copy)"})
    card = CARD.format(
        name=options.name,
        architecture=recipe["architecture"]["name"],
        width=recipe["architecture"]["width"],
        classes=recipe["architecture"]["num_classes"],
        gates=gates,
        images=images,
        accuracy=100 * summary["accuracy"],
        mac_reduction=reductions[0],
        network_mac_reduction=reductions[1],
        epochs=summary["epochs"],
        start=_start(recipe),
        seed=summary["seed"],
        hours=summary["seconds"] / 3600,
        protocol=options.run.parent.name,
        variant=options.run.name.rsplit("-s", 1)[0],
        date=date.today().isoformat(),
    )
    write_atomic(target.with_suffix(".md"), card)
    print(f"{target} ({target.stat().st_size} bytes)")


def _start(recipe: dict[str, Any]) -> str:
    """Where the training started, and who taught."""
    start = " from the dense network" if recipe["init_from"] else " from scratch"
    return start + (", with the dense network as its teacher" if recipe["distill"] else "")


if __name__ == "__main__":
    main()
