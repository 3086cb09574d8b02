"""Pictures as parts of a page: SVGs that take its colours and fonts, images as data, and both as files beside it."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray
from PIL import Image

from headgate.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PROLOGUE: Final = re.compile(r"^.*?(?=<svg)", re.S)
_LEFT_OUT: Final = re.compile(r"\s*<metadata>.*?</metadata>|\s*<style[^>]*>.*?</style>|<!--.*?-->", re.S)
_ATTRIBUTES: Final = re.compile(r"<svg[^>]*?viewBox=\"([^\"]*)\"[^>]*>", re.S)
_REFERENCE: Final = re.compile(r"(\bid=\"|url\(#|href=\"#)([^\")]+)")


class Gallery:
    """The figures of a page: hands each out as inline SVG, and writes them all as PNGs in the end."""

    def __init__(self) -> None:
        self.figures: dict[str, Figure] = {}

    def keep(self, name: str, figure: Figure) -> None:
        """Take a figure for its PNG only."""
        self.figures[name] = figure

    def show(self, name: str, figure: Figure, label: str) -> Markup:
        """The figure as inline SVG.

        Args:
            name: of its PNG, and unique on the page.
            label: what it shows, in words, for those who do not see it.
        """
        from headgate import plots

        self.keep(name, figure)
        return inline_svg(plots.to_svg(figure), name, label)

    def write(self, folder: Path) -> None:
        """Write every figure as `<name>.png`.

        Raises: CheckpointError: one cannot be written.
        """
        from headgate import plots

        for name, figure in self.figures.items():
            write_atomic(folder / f"{name}.png", plots.to_png(figure))


def inline_svg(svg: str, name: str, label: str) -> Markup:
    """A standalone SVG as an element of a page.

    Colours of the house become the page's variables (`--blue`, …), names become unique, and what only a file needs is
    left out.
    """
    from headgate import plots

    svg = _LEFT_OUT.sub("", _PROLOGUE.sub("", svg, count=1)).replace("xlink:href", "href")
    svg = _REFERENCE.sub(lambda match: f"{match[1]}{name}-{match[2]}", svg)
    for colour, value in plots.PALETTE.items():
        svg = re.sub(rf"{value}\b", f"var(--{colour})", svg, flags=re.I)
    start = f'<svg class="figure" role="img" aria-label="{escape(label)}" viewBox="\\1">'
    return Markup(_ATTRIBUTES.sub(start, svg, count=1))


def data_uri(picture: NDArray[np.uint8]) -> str:
    """An image (h, w, 3) as the address of an `<img>`, a PNG within."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
