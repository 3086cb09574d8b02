"""Run a study: its missing trials, then its figures."""

from __future__ import annotations

from pathlib import Path

from headgate.errors import ConfigError
from headgate.files import write_atomic
from headgate.studies.cluster import Cluster, run_trials_on_ray
from headgate.studies.job import Job, Watcher
from headgate.studies.protocol import get_protocol
from headgate.studies.queue import run_trials
from headgate.studies.store import Store
from headgate.studies.study import Study
from headgate.studies.trial import Result, Trial

__all__ = ["draw_study", "make_job", "run_study"]


def make_job(study: Study, protocol: str, *, data: str | None, seeds: int, images: int | None = None) -> Job:
    """What a study comes to under a protocol.

    Args:
        data: where the images lie, a folder or a name on the Hub; None for a protocol whose data are embedded.
        seeds: of every variant.
        images: of the test split, for measurements; None: all.
    Raises: ConfigError: an unknown protocol, no data for one that needs some, or a number below 1.
    """
    chosen = get_protocol(protocol)
    for name, value in (("seeds", seeds), ("images", images)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} must be ≥ 1, got {value}")
    if data is None and not chosen.embedded:
        raise ConfigError(f"data must be given: protocol {protocol!r} trains on {chosen.dense.data.source}")
    return Job(
        study=study.name,
        protocol=protocol,
        trials=study.trials(chosen, seeds),
        dense=Trial(variant="dense", point={}, recipe=chosen.dense),
        source=chosen.dense.data.source if data is None else _anywhere(data),
        images=images,
    )


def _anywhere(data: str) -> str:
    """The same data for a process with another working folder; a name stays a name."""
    path = Path(data).expanduser()
    return str(path.absolute()) if path.exists() else data


def run_study(
    study: Study, job: Job, store: Store, *, jobs: int | None = None, cluster: Cluster | None = None, watcher: Watcher
) -> list[Result]:
    """Run what is missing and draw the figures of what is finished.

    Args:
        jobs: trials at a time; None: one on this machine, as many as there is room for on a cluster.
        cluster: where they run; None: on this machine.
    Returns: the results of the trials that were run now, failed ones too.
    Raises:
        ConfigError: another queue is on this folder; see `run_trials` and `run_trials_on_ray`.
        BackendError: a cluster, without the package.
        CheckpointError: a file cannot be written.
    """
    with store.locked():
        if cluster is None:
            ended = run_trials(job, store, jobs=1 if jobs is None else jobs, watcher=watcher)
        else:
            ended = run_trials_on_ray(job, store, cluster=cluster, jobs=jobs, watcher=watcher)
        draw_study(study, store, job.protocol)
    return ended


def draw_study(study: Study, store: Store, protocol: str) -> list[Path]:
    """Draw a study's figures from its recorded results, as PNG and SVG; nothing where none has finished.

    Raises: CheckpointError: results cannot be read, or a file cannot be written.
    """
    from headgate import plots

    finished = [result for result in store.results(study.name, protocol) if result.finished]
    written = []
    for name, draw in study.figures.items() if finished else ():
        figure = draw(finished)
        for suffix, content in ((".png", plots.to_png(figure)), (".svg", plots.to_svg(figure))):
            path = store.study(study.name, protocol) / f"{name}{suffix}"
            write_atomic(path, content)
            written.append(path)
    return written
