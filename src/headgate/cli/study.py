"""`headgate study`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from tyro.conf import Positional

from headgate.errors import ConfigError

if TYPE_CHECKING:
    from headgate.studies import Cluster, Result, Row, Trial

LIST, REPORT = "list", "report"


@dataclass(frozen=True, kw_only=True)
class Study:
    """Run a study, list them all, or draw a page of what was found. The same command goes on where it was stopped.

    Attributes:
        what: name of a study; or "list"; or "report".
        folder: of results.
        data: folder or Hub name of the images. Default: embedded ones, where the protocol has them.
        data_name: what results call the data. Default: `data`.
        protocol: smoke (digits, seconds), short (ResNet-20 on CIFAR-10, minutes a trial) or paper (for a GPU).
        seeds: of every variant.
        jobs: trials at a time. Default: one; with --ray, as many as the cluster has room for.
        ray: run them on a Ray cluster: "local" starts one on this machine, "auto" or host:port of its head joins one
            that this machine is part of. All its nodes must share the folder (and `data`).
        cpus: with --ray, cores for each trial.
        gpus: with --ray, GPUs for each trial; a fraction to share one.
        images: of the test split, for what is measured beside accuracy; default: all.
        out: report: the page. Default: index.html in the folder.
    """

    what: Positional[str]
    folder: Positional[Path] = Path("studies")
    data: str | None = None
    data_name: str | None = None
    protocol: str = "short"
    seeds: int = 1
    jobs: int | None = None
    ray: str | None = None
    cpus: int = 1
    gpus: float = 0.0
    images: int | None = None
    out: Path | None = None

    def run(self, console: Console) -> None:
        cluster = self._cluster()
        if self.what == LIST:
            self._list(console)
        elif self.what == REPORT:
            self._report(console)
        else:
            self._run(console, cluster)

    def _list(self, console: Console) -> None:
        from headgate.studies import PROTOCOLS, STUDIES, get_protocol

        table = Table(box=None)
        for heading in ("study", "question", "source"):
            table.add_column(heading)
        for study in STUDIES.values():
            table.add_row(study.name, study.question, study.source)
        console.print(table)
        for name in PROTOCOLS:
            console.print(f"protocol [bold]{name}[/]: {get_protocol(name).title}", highlight=False)

    def _report(self, console: Console) -> None:
        from headgate.studies import Store
        from headgate.studies.page import write_page

        out = self.out or self.folder / "index.html"
        write_page(Store.open(self.folder), out)
        console.print(f"studies: {out}")

    def _cluster(self) -> Cluster | None:
        """Where trials run; None: here."""
        if self.ray is None:
            if self.cpus != 1 or self.gpus:
                raise ConfigError(f"cpus and gpus need --ray, got cpus={self.cpus} and gpus={self.gpus:g} without it")
            return None
        if self.what in (LIST, REPORT):
            raise ConfigError(f"ray is for running a study, got {self.what!r} and --ray {self.ray}")
        from headgate.studies import Cluster

        return Cluster(address=self.ray, cpus=self.cpus, gpus=self.gpus)

    def _run(self, console: Console, cluster: Cluster | None) -> None:
        from headgate.studies import Store, get_study, rows, run_study
        from headgate.studies.run import make_job

        study = get_study(self.what)
        job = make_job(study, self.protocol, data=self.data, seeds=self.seeds, images=self.images)
        store = Store(self.folder, self.data_name or self.data or job.source)
        with _Board(len(store.missing(job.study, job.protocol, job.trials))) as board:
            ended = run_study(study, job, store, jobs=self.jobs, cluster=cluster, watcher=board)
        table = rows(store.results(study.name, self.protocol))
        if table:
            console.print(_table(table))
            console.print(f"results, table and figures: {store.study(study.name, self.protocol)}")
        failed = [result for result in ended if not result.finished]
        if failed:
            raise ConfigError(
                f"{len(failed)} of {len(ended)} trials failed: {failed[0].trial}: {failed[0].failure}; "
                "the others are recorded, and the same command tries these again"
            )


class _Board:
    """A line for the whole queue and one for each running trial."""

    def __init__(self, trials: int) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.1f}/{task.total:g}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._all = self._progress.add_task("[bold]trials", total=trials)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> _Board:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def started(self, trial: Trial) -> None:
        self._tasks[trial.name] = self._progress.add_task(f"  {escape(trial.name)}", total=trial.recipe.epochs)

    def moved(self, trial: Trial, epoch: float) -> None:
        self._progress.update(self._tasks[trial.name], completed=epoch)

    def ended(self, trial: Trial, result: Result) -> None:
        task = self._tasks.pop(trial.name, None)
        if task is not None:
            self._progress.remove_task(task)
        self._progress.advance(self._all)
        how = (
            f"{100 * result.figures['accuracy']:.2f} % at {result.figures['mac_reduction']:.2f}×"
            if result.finished
            else f"[red]failed[/]: {escape((result.failure or '').splitlines()[-1])}"
        )
        self._progress.console.print(f"{escape(trial.name)}: {how}", highlight=False)


def _table(rows: list[Row]) -> Table:
    points = list(dict.fromkeys(key for row in rows for key in row.point))
    table = Table(box=None)
    table.add_column("variant")
    for heading in (*points, "seeds", "top-1 %", "MAC reduction, gated layers", "whole network", "density"):
        table.add_column(heading, justify="right")
    for row in rows:
        spread = f" ± {100 * row.spread('accuracy'):.2f}" if len(row.results) > 1 else ""
        table.add_row(
            row.variant,
            *(str(row.point.get(key, "")) for key in points),
            str(len(row.results)),
            f"{100 * row.mean('accuracy'):.2f}{spread}",
            f"{row.mean('mac_reduction'):.2f}×",
            f"{row.mean('network_mac_reduction'):.2f}×",
            f"{row.mean('density'):.3f}",
        )
    return table
