"""Accuracy and executed MACs of a model, in one pass over a dataset."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Int64
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from headgate.counting import Counts, count
from headgate.train.data import Batch


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What one pass over a test set gave.

    Attributes:
        accuracy, top5: shares in [0, 1].
        loss: mean cross-entropy.
        counts: see `headgate.count`. These four are over all processes.
        predictions, labels: of this process's images, in the order they came.
    """

    accuracy: float
    top5: float
    loss: float
    counts: Counts
    predictions: Int64[Tensor, " n"]
    labels: Int64[Tensor, " n"]


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[Batch], *, autocast: torch.dtype | None = None) -> Evaluation:
    """Run a model over batches of (images, labels, index) and count what it executes.

    Args:
        autocast: compute convolutions in this dtype; None: in the parameters' own.
    """
    labels: list[Tensor] = []
    logits: list[Tensor] = []

    def served() -> Iterator[Batch]:
        for batch in batches:
            labels.append(batch[1])
            yield batch

    def keep(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        logits.append(output.float())

    handle = model.register_forward_hook(keep)
    try:
        device = next(model.parameters()).device
        with torch.autocast(device.type, autocast, enabled=autocast is not None):
            counts = count(model, served())
    finally:
        handle.remove()
    all_logits = torch.cat(logits)
    all_labels = torch.cat(labels).to(all_logits.device)
    classes = all_logits.shape[1]
    figures = {
        "accuracy": MulticlassAccuracy(classes, average="micro"),
        "top5": MulticlassAccuracy(classes, average="micro", top_k=min(5, classes)),
    }
    loss = MeanMetric().to(device)
    loss.update(F.cross_entropy(all_logits, all_labels, reduction="none"))
    for metric in figures.values():
        metric.to(device).update(all_logits, all_labels)
    return Evaluation(
        accuracy=float(figures["accuracy"].compute()),
        top5=float(figures["top5"].compute()),
        loss=float(loss.compute()),
        counts=counts,
        predictions=all_logits.argmax(1).cpu(),
        labels=all_labels.cpu(),
    )
