"""A results folder: what is in it, who may write to it, and what is finished."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import statistics
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from headgate.errors import CheckpointError, ConfigError, DataError
from headgate.files import write_atomic
from headgate.studies.trial import Result, Trial

__all__ = ["RUNS", "Row", "Store", "rows"]

FORMAT: Final = "headgate.studies"
VERSION: Final = 1
INDEX: Final = "studies.json"
RUNS: Final = "runs"
RESULTS: Final = "results.jsonl"
TABLE: Final = "results.csv"
FIGURES: Final = ("accuracy", "mac_reduction", "network_mac_reduction", "density", "additions", "multiplications")
"""What the table has means of."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """The trials of one variant at one point, together.

    Attributes:
        results: finished ones, one for each seed.
    """

    variant: str
    point: dict[str, Any]
    results: tuple[Result, ...]

    def mean(self, figure: str) -> float:
        """Of a figure, over the seeds."""
        return statistics.fmean(result.figures[figure] for result in self.results)

    def spread(self, figure: str) -> float:
        """Its standard deviation over the seeds; 0 for one."""
        values = [result.figures[figure] for result in self.results]
        return statistics.stdev(values) if len(values) > 1 else 0.0

    def measured(self, figure: str) -> float:
        """Mean of a measured figure, over the seeds that have it."""
        return statistics.fmean(result.measured[figure] for result in self.results if result.measured)

    @property
    def measurements(self) -> tuple[str, ...]:
        """Names of the measured figures that are single numbers."""
        measured = self.results[0].measured or {}
        return tuple(name for name, value in measured.items() if isinstance(value, int | float))


def rows(results: Iterable[Result]) -> list[Row]:
    """Finished results by variant and point, in the order in which they first come."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        if result.finished:
            groups.setdefault(json.dumps([result.variant, result.point]), []).append(result)
    return [
        Row(variant=group[0].variant, point=dict(group[0].point), results=tuple(group)) for group in groups.values()
    ]


class Store:
    """A results folder.

    It holds `studies.json` (format, version, name of the data), `runs/` (the trained networks, shared by studies; not
    for committing), and for each study and protocol a folder with `results.jsonl`, `results.csv` and its figures.

    Args:
        folder: made if missing.
        data: what the data are called in results; one folder is for one dataset.
    Raises:
        ConfigError: the folder's results are of other data.
        CheckpointError: it is of another version, damaged, or cannot be written.
    """

    def __init__(self, folder: Path, data: str) -> None:
        self.folder, self.data = folder, data
        if (folder / INDEX).exists():
            known = _index(folder)["data"]
            if known != data:
                raise ConfigError(
                    f"data_name must be {known!r}, of which {folder} has results, got {data!r}; choose another folder"
                )
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"cannot make the folder {folder}: {error.strerror}") from error
        index = {"format": FORMAT, "version": VERSION, "data": data}
        write_atomic(folder / INDEX, json.dumps(index, indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def open(cls, folder: Path) -> Store:
        """A folder that has results.

        Raises: CheckpointError: it has none, or see the class.
        """
        return cls(folder, str(_index(folder)["data"]))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only queue on this folder.

        Raises: ConfigError: there is another.
        """
        with (self.folder / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ConfigError(
                    f"another queue works in {self.folder}; wait for it, or choose another folder"
                ) from error
            yield

    def run(self, trial: Trial) -> Path:
        """Where a trial's network is trained."""
        return self.folder / RUNS / trial.run

    def study(self, name: str, protocol: str) -> Path:
        """Where a study's results are."""
        return self.folder / f"{name}-{protocol}"

    def studies(self) -> list[tuple[str, str]]:
        """(study, protocol) of all that has results."""
        found = []
        for path in sorted(self.folder.glob(f"*/{RESULTS}")):
            name, _, protocol = path.parent.name.rpartition("-")
            found.append((name, protocol))
        return found

    def results(self, name: str, protocol: str) -> list[Result]:
        """A study's results, failed ones too; one for each trial.

        Raises: CheckpointError: the file is damaged.
        """
        path = self.study(name, protocol) / RESULTS
        if not path.exists():
            return []
        try:
            return [Result.from_json(line) for line in path.read_text("utf-8").splitlines() if line]
        except (OSError, DataError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error

    def missing(self, name: str, protocol: str, trials: Sequence[Trial]) -> list[Trial]:
        """Those that have not finished, or whose recipe has changed since."""
        finished = {result.trial: result.identity for result in self.results(name, protocol) if result.finished}
        return [trial for trial in trials if finished.get(trial.name) != trial.identity]

    def record(self, result: Result, order: Sequence[Trial]) -> None:
        """Add a result, or replace its trial's, and write the table again; trials stand in the study's order.

        Raises: CheckpointError: a file cannot be written; the old one is unchanged.
        """
        folder = self.study(result.study, result.protocol)
        folder.mkdir(parents=True, exist_ok=True)
        kept = {old.trial: old for old in self.results(result.study, result.protocol)}
        kept[result.trial] = result
        place = {trial.name: index for index, trial in enumerate(order)}
        results = sorted(kept.values(), key=lambda each: place.get(each.trial, len(place)))
        write_atomic(folder / RESULTS, "".join(each.to_json() + "\n" for each in results))
        write_atomic(folder / TABLE, _csv(rows(results)))


def _index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX
    try:
        values = json.loads(path.read_text("utf-8"))
        kind, version, _ = values["format"], values["version"], values["data"]
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} holds no studies: {INDEX} is missing; run one with headgate study") from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged: {error!r}") from error
    if kind != FORMAT or version != VERSION:
        raise CheckpointError(
            f"{folder} must hold studies of version {VERSION}, got {kind!r} version {version!r}; choose another folder"
        )
    return dict(values)


def _csv(table: Sequence[Row]) -> str:
    points = list(dict.fromkeys(key for row in table for key in row.point))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    measurements = list(dict.fromkeys(name for row in table for name in row.measurements))
    writer.writerow(["variant", *points, "seeds", *FIGURES, "accuracy_std", *(f"measured_{m}" for m in measurements)])
    for row in table:
        means = [f"{row.mean(figure):.6g}" for figure in FIGURES]
        point = [row.point.get(key, "") for key in points]
        measured = [f"{row.measured(name):.6g}" if name in row.measurements else "" for name in measurements]
        spread = f"{row.spread('accuracy'):.6g}"
        writer.writerow([row.variant, *point, len(row.results), *means, spread, *measured])
    return text.getvalue()
