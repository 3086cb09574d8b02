"""Read what a finished run left in its folder, and find the dense run beside it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from headgate.errors import CheckpointError, ConfigError, HeadgateError

if TYPE_CHECKING:
    from headgate.counting import Counts

_OWN: Final = ("name", "seed", "gate", "budget", "init_from", "distill", "eval_every")
"""Where the recipes of a gated run and of its dense counterpart may differ."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run.

    Attributes:
        folder: where it is.
        recipe, summary: the contents of recipe.json and summary.json.
        counts: of the final model on the test split.
        metrics: the lines of metrics.jsonl.
        model: path of the final model.
        finished: when, in seconds since 1970.
    """

    folder: Path
    recipe: dict[str, Any]
    summary: dict[str, Any]
    counts: Counts
    metrics: list[dict[str, Any]]
    model: Path
    finished: float

    @property
    def name(self) -> str:
        """The recipe's."""
        return str(self.summary.get("name") or self.recipe.get("name") or self.folder.name)

    @property
    def gated(self) -> bool:
        """Whether any layer that ran has gates."""
        return any(layer.gated for layer in self.counts.layers)

    @property
    def answers(self) -> bool:
        """Whether its gates answer to what they see: images differ in cost."""
        reductions = self.counts.reduction_by_image()
        return bool(reductions.min() != reductions.max())

    @property
    def accuracy(self) -> float:
        """Top-1 on the test split, in [0, 1]."""
        return float(self.summary["accuracy"])


def read_run(folder: str | Path) -> Run:
    """Read a run's folder.

    Raises: CheckpointError: it is missing, holds no run, one that is not finished, or a file that is damaged.
    """
    from headgate.counting import Counts
    from headgate.train import Recipe
    from headgate.train.log import read_metrics
    from headgate.train.loop import COUNTS, MODEL, RECIPE, SUMMARY

    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"expected the folder of a run, found no folder {folder}; make one with headgate train")
    if not (folder / RECIPE).is_file():
        raise CheckpointError(f"{folder} holds no run: {RECIPE} is missing; give a folder that headgate train wrote")
    recipe = _read_object(folder / RECIPE)
    try:
        Recipe.from_dict(recipe)
    except HeadgateError as error:
        raise CheckpointError(f"{folder / RECIPE} cannot be read: {error}") from error
    missing = [name for name in (SUMMARY, COUNTS, MODEL) if not (folder / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} holds a run that is not finished: {', '.join(missing)} missing; finish it with the command that "
            "started it, which resumes where it stopped"
        )
    summary = _read_object(folder / SUMMARY)
    if not isinstance(summary.get("accuracy"), int | float):
        raise CheckpointError(f"{folder / SUMMARY} names no accuracy; train again, or give another run")
    return Run(
        folder=folder,
        recipe=recipe,
        summary=summary,
        counts=Counts.load(folder / COUNTS),
        metrics=read_metrics(folder),
        model=folder / MODEL,
        finished=(folder / SUMMARY).stat().st_mtime,
    )


def read_dense(run: Run, folder: str | Path | None) -> Run | None:
    """The dense run to compare a gated one with, or None where there is none.

    Args:
        folder: None looks for one: the sibling that the summary names under "dense", else a finished sibling without
            gates whose recipe is otherwise the same, by preference of the same seed.
    Raises:
        CheckpointError: `folder` is no finished run.
        ConfigError: it is gated, or of another network.
    """
    if folder is None:
        return _find_dense(run) if run.gated else None
    dense = read_run(folder)
    if dense.gated:
        raise ConfigError(f"dense must be the folder of a run without gates, got {folder}, which is gated")
    if dense.recipe.get("architecture") != run.recipe.get("architecture"):
        raise ConfigError(
            f"dense must be a run of the same network, got {_network(dense)} in {folder} for {_network(run)} in "
            f"{run.folder}; give its dense counterpart, or none"
        )
    return dense


def _find_dense(run: Run) -> Run | None:
    folder = run.folder if run.folder.name not in ("", "..") else run.folder.resolve()
    named = run.summary.get("dense")
    if isinstance(named, str):
        try:
            dense = read_run(folder.parent / named)
        except CheckpointError:
            return None
        return None if dense.gated else dense
    candidates = []
    for sibling in sorted(folder.parent.iterdir()):
        if (sibling / "recipe.json").is_file() and _is_counterpart(sibling / "recipe.json", run.recipe):
            try:
                candidates.append(read_run(sibling))
            except CheckpointError:
                continue  # one that is not finished is no counterpart yet
    candidates.sort(key=lambda dense: dense.recipe.get("seed") != run.recipe.get("seed"))
    return candidates[0] if candidates else None


def _is_counterpart(path: Path, recipe: dict[str, Any]) -> bool:
    try:
        other = _read_object(path)
    except CheckpointError:
        return False
    common = {key: value for key, value in recipe.items() if key not in _OWN}
    return other.get("gate") is None and {key: value for key, value in other.items() if key not in _OWN} == common


def _network(run: Run) -> str:
    architecture = run.recipe.get("architecture") or {}
    return str(architecture.get("name", "an unnamed network"))


def _read_object(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; is the run's folder complete?") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} must hold a JSON object, got {type(values).__name__}; is it a run's file?")
    return values
