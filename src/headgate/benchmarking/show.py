"""A benchmark on the terminal: progress while it runs, tables when it is done."""

from __future__ import annotations

import os
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from headgate.benchmarking.record import LayerTable, Record, Setting
from headgate.benchmarking.request import Request
from headgate.benchmarking.run import benchmark
from headgate.errors import ConfigError

__all__ = ["run_shown", "show"]


def run_shown(request: Request, console: Console, *, out: Path | None = None) -> Record:
    """`benchmark` with a line of progress, then the tables; and the record and its picture as files.

    Args:
        out: path without a suffix; <out>.json and <out>.png are written, each whole or not at all.
    Raises: ConfigError: the folder of `out` does not exist, or cannot be written to. See also `benchmark`.
    """
    if out is not None and not out.absolute().parent.is_dir():
        raise ConfigError(f"out must be in a folder that exists, got {out}; make {out.parent} first")
    if out is not None and not os.access(out.absolute().parent, os.W_OK):
        raise ConfigError(f"out must be in a folder that can be written to, got {out}; choose another")
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting", total=None)

        def report(label: str, done: int, of: int) -> None:
            progress.update(task, description=label, completed=done, total=of)

        record = benchmark(request, report=report)
    if out is not None:
        record.write(f"{out}.json")
    show(record, console)
    if out is not None:
        from headgate.benchmarking.picture import write_picture  # matplotlib takes its time

        write_picture(record, f"{out}.png")
        console.print(f"written: {out}.json, {out}.png", markup=False)
    return record


def show(record: Record, console: Console) -> None:
    """Print a record's tables."""
    machine = record.machine
    console.print(
        f"{machine['cpu']}, {machine['usable_cores']} usable cores, load {machine['load_average_at_start']} at start",
        markup=False,
    )
    for findings in record.findings:
        for setting in findings.settings:
            console.print(_times(setting, f"{findings.network}, {findings.isa}"))
        for table in findings.settings[0].layers:
            console.print(_layers(table, findings.settings[0]))
        call = findings.call
        console.print(
            f"{findings.settings[0].threads} thread(s): beside its arithmetic a call from Python takes "
            f"{call.overhead_us.median:.1f} µs; loading a plan of {call.load_bytes / 1e6:.1f} MB takes "
            f"{call.load_ms.median:.1f} ms"
        )
    gated = record.findings[0].gated
    for network in gated:
        shares = network.density.values()
        clustered = "" if network.after_open is None else f", {network.after_open:.3f} right of an open one"
        density = f"density {min(shares):.3f} to {max(shares):.3f} by layer{clustered}; " if shares else ""
        console.print(f"{network.title}: {density}{network.images}", markup=False)
    if Request.from_dict(record.request).kind == "plan":
        console.print(_about_plan(record), markup=False)
    if all(timed.ours for setting in record.settings for timed in setting.timed):
        console.print("no library was timed")
    for name, reason in record.absent.items():
        console.print(f"[yellow]absent:[/] {escape(name)}: {escape(reason)}", soft_wrap=True)


def _about_plan(record: Record) -> str:
    name = record.findings[0].network
    said = f"dense: {name} with its gates held open, rebuilt from the file"
    own = next(timed.dtype for timed in record.settings[0].timed if timed.ours)
    if own != "float32":
        said += f"; {name} computes in {own}, and so do rivals that say so, the others in float32"
    return said


def _times(setting: Setting, what: str) -> Table:
    threads = f"{setting.threads} thread{'s' if setting.threads > 1 else ''}"
    table = _table(
        f"{what}: {threads}, batches of {setting.batch}",
        ("library or engine: network", "M MACs", "ms", "quartiles", "of best", "of any dtype"),
    )
    for timed in setting.timed:
        best = timed in (setting.best(timed.dtype), setting.best_of_any_dtype)
        table.add_row(
            timed.title,
            f"{timed.macs / 1e6:.1f}",
            f"{timed.ms.median:.3f}",
            f"{timed.ms.q1:.3f}–{timed.ms.q3:.3f}",
            _ratio(setting.speedup(timed)),
            _ratio(setting.speedup_of_any_dtype(timed)),
            style="bold" if best or timed.kind == "gated" else None,
        )
    return table


def _table(title: str, headings: tuple[str, ...]) -> Table:
    """An empty table: words in the first column, numbers in the others."""
    table = Table(title=title, box=None, title_justify="left", pad_edge=False)
    table.add_column(headings[0])
    for heading in headings[1:]:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _ratio(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.2f}×"


def _layers(layers: LayerTable, setting: Setting) -> Table:
    title = f"{layers.title}: layers, {setting.threads} thread(s), batches of {setting.batch}"
    table = _table(title, ("layer", "density", "ms dense", "ms gated", "theory", "measured", "of theory"))
    totals = [total for total in (layers.total, setting.whole(layers)) if total is not None]
    for layer in (*layers.layers, *totals):
        table.add_row(
            layer.name,
            f"{layer.density:.3f}" if layer.decisions else "–",
            "–" if layer.dense_ms is None else f"{layer.dense_ms:.4f}",
            f"{layer.gated_ms:.4f}",
            f"{layer.theory:.2f}×",
            _ratio(layer.measured),
            "–" if layer.fraction is None or not layer.decisions else f"{layer.fraction:.2f}",
            style="bold" if layer in totals else None,
        )
    return table
