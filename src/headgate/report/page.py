"""Put the page together and write it."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

from headgate.errors import CheckpointError, ConfigError
from headgate.files import write_atomic
from headgate.report import looks, sections
from headgate.report.embed import Gallery
from headgate.report.run import read_dense, read_run
from headgate.report.sample import try_sample

PAGE = "index.html"


def write_report(
    run: str | Path,
    *,
    dense: str | Path | None = None,
    data: str | None = None,
    out: str | Path | None = None,
    images: int = 2000,
) -> Path:
    """Draw a finished run: one HTML page that needs nothing else, and beside it every figure as a PNG.

    Args:
        run: the run's folder.
        dense: folder of the dense counterpart's run. None: a run beside this one whose recipe is the same but for the
            gates, where there is one.
        data: the dataset, see `DataConfig.source`. None: what the run was trained on. Where it cannot be read the page
            says so, and shows everything that needs no images.
        out: folder to write to. None: `report` in the run's folder.
        images: run the final model on so many test images, spread evenly over the split.
    Returns: the page.
    Raises:
        CheckpointError: a folder holds no finished run, its model cannot be loaded, or a file cannot be written.
        ConfigError: `dense` is gated or of another network; `images` is not positive.
    """
    import jinja2

    if isinstance(images, bool) or not isinstance(images, int) or images < 1:
        raise ConfigError(f"images must be an integer ≥ 1, got {images!r}")
    finished = read_run(run)
    counterpart = read_dense(finished, dense)
    folder = Path(out) if out is not None else finished.folder / "report"
    gallery = Gallery()
    sample = try_sample(finished, data, images) if finished.answers else ""
    template = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(importlib.resources.files("headgate.report").joinpath("template.html").read_text("utf-8"))
    page = template.render(
        gated=finished.gated,
        headline=sections.headline(finished, counterpart, gallery),
        layers=sections.layers(finished, gallery),
        answers=finished.answers,
        costs=looks.costs(finished, sample, gallery) if finished.answers else None,
        maps=looks.maps(sample, gallery) if finished.answers else None,
        behind=sections.behind(finished, counterpart),
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"cannot make the folder {folder}: {error.strerror}; give another one as out") from error
    gallery.write(folder)
    write_atomic(folder / PAGE, page)
    return folder / PAGE
