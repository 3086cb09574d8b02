"""All studies, by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from headgate.errors import ConfigError
from headgate.studies.comparators import COMPARATORS
from headgate.studies.composition import COMPOSITION
from headgate.studies.frontier import FRONTIER
from headgate.studies.gates import BUDGET, GATES
from headgate.studies.hyperparameters import EPSILON, ETA, GROUPING
from headgate.studies.looks import CORRELATION, TRAFFIC, USAGE
from headgate.studies.study import Study

__all__ = ["STUDIES", "get_study"]

STUDIES: Final[Mapping[str, Study]] = MappingProxyType(
    {
        study.name: study
        for study in (
            EPSILON,
            ETA,
            GROUPING,
            GATES,
            COMPARATORS,
            COMPOSITION,
            TRAFFIC,
            CORRELATION,
            USAGE,
            FRONTIER,
            BUDGET,
        )
    }
)
"""In the order in which they are listed."""


def get_study(name: str) -> Study:
    """The study of that name.

    Raises: ConfigError: there is none.
    """
    if name not in STUDIES:
        raise ConfigError(f"study must be one of {', '.join(STUDIES)}, got {name!r}")
    return STUDIES[name]
