"""The state of a run: one safetensors file, replaced atomically, from which training resumes bit for bit on a CPU."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from headgate.errors import CheckpointError, HeadgateError
from headgate.files import write_atomic
from headgate.train.recipe import Recipe

FORMAT = 1


@dataclass(kw_only=True)
class Progress:
    """Where a run stands, beside its tensors.

    Attributes:
        epoch, step: the next step to do: `step` of `epoch`.
        steering: the budget controller's state.
        seconds: training time so far, over all sessions.
    """

    epoch: int = 0
    step: int = 0
    steering: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


def save_state(
    path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, progress: Progress, recipe: dict[str, Any]
) -> None:
    """Write model, optimiser, generators and progress.

    Raises: CheckpointError: the file could not be written; an earlier one is intact.
    """
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    for index, entry in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser/{index}/{key}": value for key, value in entry.items() if isinstance(value, Tensor)}
    tensors["rng/cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["rng/cuda"] = torch.cuda.get_rng_state()
    header = {"format": FORMAT, "progress": asdict(progress), "recipe": recipe}
    contiguous = {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
    write_atomic(path, save(contiguous, {"headgate.state": json.dumps(header)}))


def load_state(path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, recipe: dict[str, Any]) -> Progress:
    """Restore, in place, what `save_state` wrote.

    Raises: CheckpointError: missing, truncated or foreign file, or one of another recipe.
    """
    try:
        with safe_open(path, "pt") as file:
            header = json.loads((file.metadata() or {})["headgate.state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not a readable training state ({error}); remove it, or start in another folder"
        ) from error
    if header["format"] != FORMAT:
        raise CheckpointError(f"{path} has format {header['format']}, this headgate reads {FORMAT}; start anew")
    saved, wanted = _today(header["recipe"]), _plain(recipe)
    if saved != wanted:
        raise CheckpointError(
            f"{path} belongs to another recipe ({_difference(saved, wanted)}); "
            "give the same options, or start in another folder"
        )
    try:
        model.load_state_dict({name[6:]: value for name, value in tensors.items() if name.startswith("model/")})
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit the model: {error}") from error
    state = optimiser.state_dict()
    state["state"] = {}
    for name, value in tensors.items():
        if name.startswith("optimiser/"):
            _, index, key = name.split("/")
            state["state"].setdefault(int(index), {})[key] = value
    optimiser.load_state_dict(state)
    torch.set_rng_state(tensors["rng/cpu"])
    if torch.cuda.is_available() and "rng/cuda" in tensors:
        torch.cuda.set_rng_state(tensors["rng/cuda"])
    return Progress(**header["progress"])


def _plain(recipe: dict[str, Any]) -> dict[str, Any]:
    """As it comes back from a JSON file."""
    values: dict[str, Any] = json.loads(json.dumps(recipe))
    return values


def _today(recipe: dict[str, Any]) -> dict[str, Any]:
    """A saved recipe with the options that have been added since, at their defaults; or as it is."""
    try:
        return _plain(Recipe.from_dict(recipe).to_dict())
    except HeadgateError:
        return recipe


def _difference(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> str:
    """The first option in which two recipes differ."""
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            if found := _difference(a, b, f"{prefix}{key}."):
                return found
        elif a != b:
            return f"{prefix}{key}: {a!r} then, {b!r} now"
    return ""
