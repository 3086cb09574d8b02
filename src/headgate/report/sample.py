"""Run the final model on some test images: what each one costs, and where its gates open."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from headgate.errors import CheckpointError, DataError, HeadgateError, ModelError
from headgate.report.run import Run

if TYPE_CHECKING:
    from torch import nn

    from headgate.train.data import ImageTensors
    from headgate.workload import GateTrace

Pixels = NDArray[np.uint8]
_BATCH = 100
_Resampling = Image.Resampling


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Test images, spread evenly over the split, and what the model did with them.

    Attributes:
        model: in evaluation mode.
        data: the images, as they are stored.
        total: images in the split.
        reductions: (n,) MAC reduction of the gated layers for each image.
        executed, dense_macs: (n,) MACs that the gated layers executed for each image, and that they would have; binary
            ones among them.
        predictions: (n,) class that the model takes each for.
    """

    model: nn.Module
    data: ImageTensors
    total: int
    reductions: NDArray[np.float64]
    executed: NDArray[np.int64]
    dense_macs: int
    predictions: NDArray[np.int64]

    @property
    def labels(self) -> NDArray[np.int64]:
        """(n,) true classes."""
        labels: NDArray[np.int64] = self.data.labels.numpy()
        return labels

    def class_name(self, label: int) -> str:
        """Of a label."""
        return self.data.classes[label]

    def mean_reduction(self, chosen: NDArray[np.bool_]) -> float:
        """MAC reduction of the gated layers over the chosen images together."""
        return self.dense_macs / float(self.executed[chosen].mean())


def take_sample(run: Run, source: str | None, images: int) -> Sample:
    """Run the final model on up to `images` test images.

    Args: source: None is what the run was trained on.
    Raises: HeadgateError: the data cannot be read or is not what the model takes, or the model cannot be loaded.
    """
    from headgate.checkpoint import Preprocess, load
    from headgate.counting import count

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load(run.model).eval().to(device)
    preprocess = getattr(model, "preprocess", None)
    if not isinstance(preprocess, Preprocess):
        raise ModelError(f"{run.model} does not say how its images are normalised; save it with model.preprocess set")
    data, total = _read_images(run, source, images, channels=len(preprocess.mean))
    classes = (run.recipe.get("architecture") or {}).get("num_classes") or len(data.classes)
    if len(data.classes) != classes:
        raise DataError(
            f"expected {classes} classes as the model has, got {len(data.classes)}; give the dataset of the run"
        )

    def batches() -> Iterator[Any]:
        for start in range(0, len(data), _BATCH):
            index = torch.arange(start, min(start + _BATCH, len(data)))
            part = data.subset(index).to(device)
            yield preprocess(part.images.float() / 255), part.labels, index.to(device)

    logits: list[torch.Tensor] = []
    hook = model.register_forward_hook(lambda _module, _inputs, output: logits.append(output.float()))
    try:
        counts = count(model, batches())
    finally:
        hook.remove()
    return Sample(
        model=model,
        data=data,
        total=total,
        reductions=counts.reduction_by_image(),
        executed=counts.by_image() + counts.by_image(binary=True),
        dense_macs=counts.dense_macs + counts.total(binary=True).dense_macs,
        predictions=torch.cat(logits).argmax(1).cpu().numpy(),
    )


def _read_images(run: Run, source: str | None, images: int, channels: int) -> tuple[ImageTensors, int]:
    """Up to `images` images, spread evenly (splits are often sorted by class), and how many there are."""
    from headgate.train.data import ImageTensors, load_in_memory
    from headgate.train.sources import decode, open_rows
    from headgate.train.streaming import ImageSizes

    options = run.recipe.get("data") or {}
    where = source or options.get("source")
    if not where:
        raise DataError("the recipe names no dataset; give one as data")
    split = options.get("test_split", "test")
    if options.get("loading") != "stream":
        data = load_in_memory(where, split, channels=channels)
        return data.subset(_spread(len(data), images)), len(data)
    rows = open_rows(where, split, stream=True)
    transform = ImageSizes(size=int(options.get("size", 224))).test_transform()
    index = _spread(len(rows.labels), images)
    pictures = [transform(decode(rows.read(int(i)), channels, rows.origin(int(i)))) for i in index]
    labels = torch.from_numpy(np.ascontiguousarray(rows.labels))[index]
    return ImageTensors(images=torch.stack(pictures), labels=labels, classes=rows.classes), len(rows.labels)


def _spread(total: int, wanted: int) -> torch.Tensor:
    return torch.linspace(0, max(total - 1, 0), min(total, wanted), dtype=torch.float64).round().long()


def try_sample(run: Run, source: str | None, images: int) -> Sample | str:
    """The sample, or in words why there is none: its data is missing or does not fit.

    Raises: CheckpointError: the model cannot be loaded.
    """
    try:
        return take_sample(run, source, images)
    except CheckpointError:
        raise
    except HeadgateError as error:
        return str(error)


# ------------------------------------------------------------------- choices


def extremes_by_class(sample: Sample, most: int = 10) -> list[tuple[int, int, int]]:
    """(label, cheapest image, dearest image) of each class; of many classes, those with the widest spread."""
    found = []
    for label in range(len(sample.data.classes)):
        members = np.flatnonzero(sample.labels == label)
        if len(members) > 1:
            costs = sample.executed[members]
            found.append((label, int(members[costs.argmin()]), int(members[costs.argmax()])))
    found.sort(key=lambda entry: -sample.executed[entry[2]] / max(sample.executed[entry[1]], 1))
    return sorted(found[:most])


def cheap_typical_dear(sample: Sample, each: int = 2) -> list[tuple[str, int]]:
    """Images to look at: the cheapest, the nearest to the median, the dearest; of different classes where possible."""
    order = np.argsort(sample.executed, kind="stable")
    typical = order[np.argsort(np.abs(np.arange(len(order)) - (len(order) - 1) / 2), kind="stable")]
    chosen: list[tuple[str, int]] = []
    for kind, candidates in (("cheap", order), ("typical", typical), ("dear", order[::-1])):
        left = [int(i) for i in candidates if int(i) not in [taken for _, taken in chosen]]
        picked: list[int] = []
        for image in left:
            if len(picked) < each and sample.labels[image] not in sample.labels[picked]:
                picked.append(image)
        picked += [image for image in left if image not in picked][: each - len(picked)]
        chosen += [(kind, image) for image in picked]
    return chosen


# ------------------------------------------------------------- decision maps


@dataclass(frozen=True, kw_only=True)
class DecisionMap:
    """The share of open decisions in each pixel.

    Attributes:
        name: the layer's, or what the map is the mean of.
        size: (height, width) of the layer's own map; None for a mean of several.
        shares: (images, height, width) in [0, 1], of the images' size or the layer's own.
    """

    name: str
    size: tuple[int, int] | None
    shares: NDArray[np.float64]


def decision_maps(sample: Sample, images: Sequence[int], layers: int = 4) -> list[DecisionMap]:
    """Maps of some layers from the first to the last, and one of all layers, weighted by what a decision costs there.

    Returns: none where no layer decides pixel by pixel.
    """
    from headgate.counting import trace

    device = next(sample.model.parameters()).device
    chosen = sample.data.subset(torch.as_tensor(list(images))).to(device)
    traces = trace(sample.model, sample.model.preprocess(chosen.images.float() / 255))  # type: ignore[operator]
    traces = [part for part in traces if part.shape.per_pixel and part.pixels > 1]
    if not traces:
        return []
    shares = [part.decisions().mean(1, dtype=np.float64) for part in traces]
    kernels = [part.shape.kernel for part in traces]
    body = [i for i, kernel in enumerate(kernels) if kernel == max(kernels, key=kernels.count)]  # not the shortcuts
    picks = sorted({body[round(i * (len(body) - 1) / max(layers - 1, 1))] for i in range(layers)})
    maps = [DecisionMap(name=traces[i].shape.name, size=traces[i].shape.decision_size, shares=shares[i]) for i in picks]
    mean = mean_map(traces, (chosen.images.shape[2], chosen.images.shape[3]))
    if mean is not None:
        maps.append(DecisionMap(name="all layers", size=None, shares=mean))
    return maps


def mean_map(traces: Sequence[GateTrace], size: tuple[int, int]) -> NDArray[np.float64] | None:
    """Share of open decisions in each pixel, over all layers that decide pixel by pixel, each weighted by what its
    decisions cost: (n, height, width). None where there is no such layer.
    """
    traces = [part for part in traces if part.shape.per_pixel and part.pixels > 1]
    weights = [part.shape.macs_dense * (1 - 1 / part.shape.groups) for part in traces]
    if not sum(weights):
        return None
    shares = (upsample(part.decisions().mean(1, dtype=np.float64), *size) for part in traces)
    return np.asarray(sum(weight * share for weight, share in zip(weights, shares, strict=True)) / sum(weights))


def upsample(maps: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """(n, h, w) maps at another size, each pixel a block."""
    rows = np.arange(height) * maps.shape[1] // height
    columns = np.arange(width) * maps.shape[2] // width
    return maps[:, rows[:, None], columns[None, :]]


# ----------------------------------------------------------------- pictures


def pixels(sample: Sample, image: int) -> Pixels:
    """An image as (h, w, 3), as it is stored."""
    array: Pixels = sample.data.images[image].numpy()
    return np.ascontiguousarray(np.broadcast_to(array.transpose(1, 2, 0), (*array.shape[1:], 3)))


def enlarged(picture: Pixels, side: int, *, smooth: bool = False) -> Pixels:
    """The picture with a longer side of `side`: smooth, or as blocks where it has few pixels."""
    height, width = picture.shape[:2]
    scale = side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    blocks = max(height, width) < 24 and not smooth
    return np.asarray(Image.fromarray(picture).resize(size, _Resampling.NEAREST if blocks else _Resampling.BICUBIC))


def smoothed(shares: NDArray[np.float64], like: Pixels) -> NDArray[np.float64]:
    """A map (h, w) of shares at the size of a picture, bilinear: to lay over it."""
    height, width = like.shape[:2]
    resized = Image.fromarray(shares.astype(np.float32)).resize((width, height), _Resampling.BILINEAR)
    return np.asarray(resized, np.float64)
