"""The cheapest and the dearest image of some classes, with what the gates did to them (appendix A.6, Figure 9)."""

from __future__ import annotations

import base64
import io
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from headgate.checkpoint import Preprocess
from headgate.counting import trace
from headgate.errors import ModelError
from headgate.report.sample import mean_map

__all__ = ["CLASSES", "extremes", "picture"]

CLASSES: Final = 5  # as in the figure


def extremes(
    model: nn.Module, images: Tensor, labels: NDArray[np.int64], reductions: NDArray[np.float64]
) -> list[dict[str, Any]]:
    """For each of the first classes the image of the largest and that of the smallest MAC reduction.

    Args:
        model: gated; `model.preprocess` is undone on the images.
        images: (n, c, height, width) as the model takes them.
        labels, reductions: (n,).
    Returns: label; kind, "cheapest" or "dearest"; image, its place; reduction; picture, a PNG in base64; open, another
        one, grey: the share of open decisions in each pixel, 255 for all; None where no layer decides pixel by pixel.
    Raises: ModelError: the model does not know its preprocessing.
    """
    preprocess = getattr(model, "preprocess", None)
    if not isinstance(preprocess, Preprocess):
        raise ModelError("model must have a `preprocess` to show its images, got one without")
    found = []
    for label in np.unique(labels)[:CLASSES]:
        of_class = np.flatnonzero(labels == label)
        order = of_class[np.argsort(reductions[of_class], kind="stable")]
        for kind, place in (("cheapest", int(order[-1])), ("dearest", int(order[0]))):
            image = images[place]
            shares = mean_map(trace(model, image[None]), (image.shape[1], image.shape[2]))
            shown = (image * preprocess.std + preprocess.mean).clamp(0, 1).permute(1, 2, 0)
            found.append(
                {
                    "label": int(label) if preprocess.classes is None else preprocess.classes[label],
                    "kind": kind,
                    "image": place,
                    "reduction": round(float(reductions[place]), 4),
                    "picture": _png((255 * shown).round().to(torch.uint8).numpy()),
                    "open": None if shares is None else _png(np.rint(255 * shares[0]).astype(np.uint8)),
                }
            )
    return found


def _png(pixels: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    grey = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    Image.fromarray(grey).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def picture(png: str) -> NDArray[np.uint8]:
    """The pixels of a PNG in base64: (h, w, 3), or (h, w) of a grey one."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))))
