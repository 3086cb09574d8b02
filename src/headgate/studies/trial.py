"""A trial: one trained network of a study, and what is measured on it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeAlias

from headgate.errors import DataError
from headgate.studies.protocol import DENSE
from headgate.train import Recipe

__all__ = ["Point", "Result", "Trial", "resolved"]

Point: TypeAlias = Mapping[str, float | int | str]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of a study.

    Attributes:
        variant: what is compared: a curve of the figure, rows of the table.
        point: where on the curve: the values that the study varies, by name.
        recipe: of the run; where it says `DENSE` the protocol's dense checkpoint is meant.
        measure: what is measured on the finished network beside accuracy and MACs; a name of `measure.MEASURES`.
        shipped: a model that comes with headgate is looked at, and nothing trained; `recipe` says on which data.
    """

    variant: str
    point: Point
    recipe: Recipe
    measure: str | None = None
    shipped: str | None = None

    @property
    def name(self) -> str:
        """Unique in its study."""
        point = "".join(f", {key} {value}" for key, value in self.point.items())
        return f"{self.variant}{point}, seed {self.recipe.seed}"

    @property
    def needs_dense(self) -> bool:
        """Whether the dense network must be there before it can run."""
        distill = self.recipe.distill
        return self.shipped is None and DENSE in (self.recipe.init_from, distill.teacher if distill else None)

    @property
    def identity(self) -> dict[str, Any]:
        """What decides its outcome, as plain JSON values: the recipe, but not its name or where the data lie; or the
        name of the shipped model.

        Fields at their defaults are left out, so that one that is added to recipes later leaves old results valid.
        """
        if self.shipped is not None:
            return {"shipped": self.shipped}
        values: dict[str, Any] = json.loads(json.dumps(_said(self.recipe)))
        del values["name"], values["data"]["source"]
        return values

    @property
    def run(self) -> str:
        """Folder of the run: trials that train alike, of whatever study, share it."""
        if self.shipped is not None:
            return self.shipped
        digest = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()
        return f"{re.sub('[^a-z0-9]+', '-', self.recipe.architecture.name.lower())}-{digest[:12]}"


def _said(record: Any) -> dict[str, Any]:
    """The fields of a record that are not at their defaults."""
    said = {}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if value != field.default:
            said[field.name] = _said(value) if dataclasses.is_dataclass(value) else value
    return said


def resolved(recipe: Recipe, *, dense: Path, source: str) -> Recipe:
    """The recipe with the dense checkpoint's path and the data's place in it."""

    def path(name: str | None) -> str | None:
        return str(dense) if name == DENSE else name

    distill = recipe.distill
    if distill is not None and distill.teacher == DENSE:
        distill = replace(distill, teacher=str(dense))
    return replace(recipe, init_from=path(recipe.init_from), distill=distill, data=replace(recipe.data, source=source))


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a trial ended: one line of a study's results.jsonl.

    Attributes:
        study, protocol: what it belongs to.
        trial, variant, point, seed, identity, run: see `Trial`.
        failure: why it has no figures; None where it finished.
        figures: of the final network on the test split: accuracy, top5, loss; mac_reduction and density (gated
            layers); network_mac_reduction (MACs of the dense network ÷ executed ones); network_macs
            (executed, per image), dense_macs (gated layers, per image), additions and multiplications (the gates', per
            image); epochs, seconds.
        measured: what the trial's measurement gave.
        circumstances: date, CPU, versions.
    """

    study: str
    protocol: str
    trial: str
    variant: str
    point: Point
    seed: int
    identity: dict[str, Any]
    run: str
    failure: str | None
    figures: Mapping[str, float]
    measured: Mapping[str, Any] | None
    circumstances: Mapping[str, str]

    @property
    def finished(self) -> bool:
        """Whether it has figures."""
        return self.failure is None

    def to_json(self) -> str:
        """As one line."""
        return json.dumps(self.__dict__, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> Self:
        """The inverse of `to_json`.

        Raises: DataError: it is not such a line.
        """
        try:
            return cls(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise DataError(f"expected a result of a study, got {line[:80]!r}: {error}") from error
