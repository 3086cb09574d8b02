"""A worker that trains nothing, for tests of what starts workers. It imports little, so as to start at once.

It takes tasks as `headgate.studies.worker` does, writes a line in `order` for each, and meets the fate that the file
`fate` has for it, both beside the runs' folders: `kill1`, `orphan1`, `fail1` or `hang1` for the gated network of seed
1, `faildense` for a dense one.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

FIGURES = dict.fromkeys(
    ("accuracy", "mac_reduction", "network_mac_reduction", "density", "additions", "multiplications"), 0.5
)


def main() -> None:
    """Work until there are no more tasks."""
    for line in sys.stdin:
        task = json.loads(line)
        folder, recipe = Path(task["folder"]), task["recipe"]
        who = str(recipe["seed"]) if recipe["gate"] else "dense"
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
        said = {"who": who, "pid": os.getpid(), "threads": task["threads"], "cores": task["cores"], "gpus": gpus}
        with (folder.parent / "order").open("a") as order:
            print(json.dumps(said), file=order)
        (folder / "log.txt").write_text("first words\nlast words\n")
        write(folder / "outcome.json", json.dumps(outcome(folder, who)))


def outcome(folder: Path, who: str) -> dict[str, object]:
    """What the task comes to, if anything."""
    fates = folder.parent / "fate"
    words = fates.read_text().split() if fates.exists() else []
    fate = {word.removesuffix(who) for word in words if word.endswith(who)}
    if "kill" in fate:
        os.kill(os.getpid(), signal.SIGKILL)
    if "orphan" in fate:
        os.kill(os.getppid(), signal.SIGKILL)
        sys.exit(1)
    if "hang" in fate:
        signal.signal(signal.SIGTERM, lambda *_: (write(folder / "state", "saved"), sys.exit(130)))
        write(folder / "metrics.jsonl", json.dumps({"kind": "train", "step": 1, "epoch": 0.5}) + "\n")
        time.sleep(600)
    if "fail" in fate:
        return {"failure": "DivergedError: the loss is nan"}
    (folder / "model.safetensors").touch()
    return {"figures": FIGURES, "measured": None, "circumstances": {"date": "today"}}


def write(path: Path, text: str) -> None:
    """In one step."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text)
    part.rename(path)


if __name__ == "__main__":
    main()
