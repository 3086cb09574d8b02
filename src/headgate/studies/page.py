"""One self-contained page of all studies in a results folder: figures, and the tables behind them."""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import Any

from headgate.errors import CheckpointError
from headgate.files import write_atomic
from headgate.report.embed import inline_svg
from headgate.studies.catalog import STUDIES
from headgate.studies.protocol import PROTOCOLS, get_protocol
from headgate.studies.store import Row, Store, rows

__all__ = ["write_page"]


def write_page(store: Store, path: Path) -> None:
    """Draw every figure from the recorded results, and write them with their tables as one HTML page.

    Raises: CheckpointError: nothing has finished, results cannot be read, or the page cannot be written.
    """
    import jinja2

    sections = [
        section
        for name, protocol in store.studies()
        if name in STUDIES and protocol in PROTOCOLS and (section := _section(store, name, protocol)) is not None
    ]
    if not sections:
        raise CheckpointError(f"{store.folder} holds no finished trials; run a study with headgate study")
    template = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(importlib.resources.files("headgate.studies").joinpath("template.html").read_text("utf-8"))
    write_atomic(path, template.render(data=store.data, sections=sections))


def _section(store: Store, name: str, protocol: str) -> dict[str, Any] | None:
    from headgate import plots

    study = STUDIES[name]
    results = store.results(name, protocol)
    finished = [result for result in results if result.finished]
    if not finished:
        return None
    table = rows(finished)
    points = list(dict.fromkeys(key for row in table for key in row.point))
    measurements = list(dict.fromkeys(measured for row in table for measured in row.measurements))
    figures = [
        inline_svg(plots.to_svg(draw(finished)), f"{name}-{protocol}-{which}", f"{which}: {study.question}")
        for which, draw in study.figures.items()
    ]
    return {
        "id": f"{name}-{protocol}",
        "title": name,
        "question": study.question,
        "source": study.source,
        "protocol": get_protocol(protocol).title,
        "figures": figures,
        "points": points,
        "measurements": measurements,
        "rows": [_cells(row, points, measurements) for row in table],
        "failed": [(result.trial, result.failure) for result in results if not result.finished],
        "circumstances": sorted({
            f"{result.circumstances['date']}, {result.circumstances['cpu']}, torch {result.circumstances['torch']}"
            for result in finished
        }),
    }  # fmt: skip


def _cells(row: Row, points: list[str], measurements: list[str]) -> list[str]:
    spread = f" ± {100 * row.spread('accuracy'):.2f}" if len(row.results) > 1 else ""
    return [
        row.variant,
        *(str(row.point.get(key, "")) for key in points),
        str(len(row.results)),
        f"{100 * row.mean('accuracy'):.2f}{spread}",
        f"{row.mean('mac_reduction'):.2f}×",
        f"{row.mean('network_mac_reduction'):.2f}×",
        f"{row.mean('density'):.3f}",
        f"{row.mean('additions'):,.0f}",
        f"{row.mean('multiplications'):,.0f}",
        *(f"{row.measured(name):.4g}" if name in row.measurements else "" for name in measurements),
    ]
