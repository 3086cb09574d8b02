"""What the sections of the page say about single images: their cost, and where the gates opened."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headgate.report.embed import Gallery, data_uri
from headgate.report.numbers import percent, times, whole
from headgate.report.run import Run
from headgate.report.sample import (
    DecisionMap,
    Pixels,
    Sample,
    cheap_typical_dear,
    decision_maps,
    enlarged,
    extremes_by_class,
    pixels,
    smoothed,
)

THUMBNAIL: Final = 96  # pixels
MAP: Final = 128


class Picture(NamedTuple):
    """An image on the page."""

    source: str
    number: str
    caption: str
    label: str


# --------------------------------------------------------------- cost by image


def costs(run: Run, sample: Sample | str, gallery: Gallery) -> dict[str, Any]:
    """How the cost spreads over all images that were counted, and over the classes of the sample."""
    from headgate import plots

    reductions = run.counts.reduction_by_image()
    low, high = float(reductions.min()), float(reductions.max())
    label = f"Histogram of the MAC reduction of {len(reductions)} images: {times(low)} to {times(high)}."
    context: dict[str, Any] = {
        "images": whole(len(reductions)),
        "low": times(low),
        "high": times(high),
        "spread": times(high / low, 1),
        "histogram": gallery.show("reduction-by-image", plots.reduction_histogram(reductions), label),
    }
    if isinstance(sample, str):
        return context | {"missing": sample}
    right = sample.predictions == sample.labels
    figure = plots.reduction_by_class(sample.reductions, sample.labels, sample.data.classes)
    classes = _class_cards(sample)
    if classes:
        rows = [
            (kind, [(pair[i][0], f"{name}\n{pair[i][1]}") for name, pair in classes])
            for i, kind in enumerate(("cheapest", "dearest"))
        ]
        gallery.keep("images", plots.image_grid(rows))
    return context | {
        "missing": None,
        "taken": None if len(right) == sample.total else whole(len(right)),
        "total": whole(sample.total),
        "classes": gallery.show("reduction-by-class", figure, _class_label(sample)),
        "right": times(sample.mean_reduction(right)) if right.any() else None,
        "wrong": times(sample.mean_reduction(~right)) if (~right).any() else None,
        "cards": [
            (name, [Picture(data_uri(thumb), number, kind, label) for thumb, number, kind, label in pair])
            for name, pair in classes
        ],
        "most": len(classes) < len(np.unique(sample.labels)),
    }


def _class_cards(sample: Sample) -> list[tuple[str, list[tuple[Pixels, str, str, str]]]]:
    cards = []
    for label, cheapest, dearest in extremes_by_class(sample):
        name = sample.class_name(label)
        pair = []
        for kind, image in (("cheapest", cheapest), ("dearest", dearest)):
            reduction = times(float(sample.reductions[image]))
            alt = f"The {kind} image of class {name}, {reduction} fewer MACs{_mistake(sample, image)}"
            pair.append((enlarged(pixels(sample, image), THUMBNAIL), reduction, kind, alt))
        cards.append((name, pair))
    return cards


def _mistake(sample: Sample, image: int) -> str:
    taken = int(sample.predictions[image])
    return f", taken for {sample.class_name(taken)}" if taken != sample.labels[image] else ""


def _class_label(sample: Sample) -> str:
    medians = {
        name: float(np.median(sample.reductions[sample.labels == label]))
        for label, name in enumerate(sample.data.classes)
        if (sample.labels == label).any()
    }
    cheap, dear = max(medians, key=medians.__getitem__), min(medians, key=medians.__getitem__)
    return (
        f"The spread of the MAC reduction within each class; medians from {times(medians[dear])} ({dear}) to "
        f"{times(medians[cheap])} ({cheap})."
    )


# ------------------------------------------------------------- decision maps


def maps(sample: Sample | str, gallery: Gallery) -> dict[str, Any]:
    """Where the network looked: the share of open decisions laid over images."""
    from headgate import plots

    if isinstance(sample, str):
        return {"missing": sample}
    chosen = cheap_typical_dear(sample)
    layers = decision_maps(sample, [image for _, image in chosen])
    if not layers:
        return {
            "missing": "its gates decide for whole channels, not pixel by pixel, so nothing can be laid over an image"
        }
    top = _top(layers)
    rows = []
    for i, (kind, image) in enumerate(chosen):
        stored = pixels(sample, image)
        under = enlarged(stored, MAP, smooth=True)
        laid = [plots.overlay(under, smoothed(layer.shares[i], under), top) for layer in layers]
        rows.append((kind, image, [enlarged(stored, MAP), *laid]))
    heads = ["the image", *(layer.name if layer.size is None else f"{layer.name}, {_size(layer)}" for layer in layers)]
    grid = [
        (
            f"{kind}\n{sample.class_name(int(sample.labels[image]))}",
            [(picture, heads[j].replace(", ", "\n") if i == 0 else "") for j, picture in enumerate(pictures)],
        )
        for i, (kind, image, pictures) in enumerate(rows)
    ]
    gallery.keep("decisions", plots.image_grid(grid, top=top))
    return {
        "missing": None,
        "columns": heads,
        "rows": [_map_row(sample, kind, image, pictures, layers, i) for i, (kind, image, pictures) in enumerate(rows)],
        "top": percent(top, 0) + (" or more" if top < 1 else ""),
        "gradient": plots.scale_css(),
    }


def _size(layer: DecisionMap) -> str:
    return "" if layer.size is None else "×".join(map(str, layer.size))


def _map_row(
    sample: Sample, kind: str, image: int, pictures: list[Pixels], layers: list[DecisionMap], row: int
) -> dict[str, Any]:
    name, reduction = sample.class_name(int(sample.labels[image])), times(float(sample.reductions[image]))
    shown = [Picture(data_uri(pictures[0]), "", "", f"A {kind} image of class {name}{_mistake(sample, image)}")]
    for picture, layer in zip(pictures[1:], layers, strict=True):
        alt = f"Open decisions of {layer.name} over it: {_where(layer.shares[row])}"
        shown.append(Picture(data_uri(picture), percent(float(layer.shares[row].mean()), 0), "", alt))
    return {"kind": kind, "class": name, "reduction": reduction, "mistake": _mistake(sample, image), "pictures": shown}


def _where(shares: NDArray[np.float64]) -> str:
    """In words, where a map is highest."""
    row, column = np.unravel_index(int(shares.argmax()), shares.shape)
    vertical = ("top", "middle", "bottom")[min(3 * int(row) // shares.shape[0], 2)]
    horizontal = ("left", "centre", "right")[min(3 * int(column) // shares.shape[1], 2)]
    mean, most = percent(float(shares.mean()), 0), percent(float(shares.max()), 0)
    return f"{mean} on average, most ({most}) {vertical} {horizontal}"


def _top(layers: list[DecisionMap]) -> float:
    """The end of the common scale: a round share that nearly all pixels stay below."""
    needed = max(float(np.percentile(layer.shares, 99)) for layer in layers)
    return next((step for step in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8) if needed <= step), 1.0)
