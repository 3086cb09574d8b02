"""The networks of a run: the one that is trained, and its teacher."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from headgate.checkpoint import Preprocess, load_by_name
from headgate.convert import gate_
from headgate.errors import CheckpointError
from headgate.nn import gated_layers
from headgate.train.recipe import Recipe


def build_model(recipe: Recipe, example_input: Tensor) -> nn.Module:
    """The recipe's network, from its initial weights or a dense checkpoint, gated where the recipe says so.

    Raises: CheckpointError: `init_from` cannot be read, is of another network, or is gated.
    """
    torch.manual_seed(recipe.seed)
    model = recipe.architecture.build()
    if recipe.init_from is not None:
        model = load_by_name(recipe.init_from, model=model)
        if gated_layers(model):
            raise CheckpointError(f"init_from must be a dense checkpoint, got {recipe.init_from}, which is gated")
    if recipe.gate is not None:
        gate_(model, recipe.gate, example_input=example_input)
    return model.to(memory_format=torch.channels_last)


def load_teacher(name: str, preprocess: Preprocess, example_input: Tensor, num_classes: int) -> nn.Module:
    """The network to distil from, on the device of `example_input`.

    Raises: CheckpointError: it cannot be read, or takes other images or has other classes than the student.
    """
    teacher = load_by_name(name).to(example_input.device).eval()
    its = getattr(teacher, "preprocess", None)
    if its is not None and not (torch.equal(its.mean, preprocess.mean) and torch.equal(its.std, preprocess.std)):
        raise CheckpointError(
            f"the teacher {name} must take images normalised like this data's, got another mean or std"
        )
    try:
        with torch.no_grad():
            classes = teacher(example_input).shape[1]
    except RuntimeError as error:
        raise CheckpointError(f"the teacher {name} cannot take this data's images: {error}") from error
    if classes != num_classes:
        raise CheckpointError(f"the teacher {name} must have the student's {num_classes} classes, got {classes}")
    return teacher
