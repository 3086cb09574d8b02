"""Studies: each claim of the paper, and each question of ours, as a command that anyone can run."""

from headgate.studies.catalog import STUDIES, get_study
from headgate.studies.cluster import Cluster
from headgate.studies.protocol import PROTOCOLS, get_protocol
from headgate.studies.run import run_study
from headgate.studies.store import Row, Store, rows
from headgate.studies.study import Study
from headgate.studies.trial import Result, Trial

__all__ = [
    "PROTOCOLS",
    "STUDIES",
    "Cluster",
    "Result",
    "Row",
    "Store",
    "Study",
    "Trial",
    "get_protocol",
    "get_study",
    "rows",
    "run_study",
]
