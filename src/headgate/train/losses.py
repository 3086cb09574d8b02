"""The task loss, with or without a teacher."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from headgate.train.recipe import DistillConfig


def task_loss(
    logits: Float[Tensor, "n classes"],
    labels: Int[Tensor, " n"],
    *,
    label_smoothing: float = 0.0,
    teacher_logits: Float[Tensor, "n classes"] | None = None,
    distill: DistillConfig | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy, mixed with the divergence from a teacher where there is one.

    (1 − α)·CE + α·t²·KL(teacher ‖ student), both softened by the temperature t.

    Source: Hinton et al., "Distilling the knowledge in a neural network", 2015.
    """
    hard = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    if teacher_logits is None or distill is None:
        return hard
    t = distill.temperature
    student, teacher = F.log_softmax(logits / t, dim=1), F.log_softmax(teacher_logits / t, dim=1)
    soft = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    mixed: Tensor = torch.lerp(hard, soft * t * t, distill.alpha)
    return mixed
