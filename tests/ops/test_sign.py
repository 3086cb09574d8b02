"""The sign that binary networks are made of: two values forward, a window of gradients backward."""

from __future__ import annotations

import math

import pytest
import torch

from headgate.ops.sign import sign

EDGES = [-math.inf, -2.0, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, 2.0, math.inf]
SIGNS = [-1.0, -1.0, -1.0, -1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("trains", [False, True])
def test_there_are_two_values_and_zero_is_positive(dtype: torch.dtype, trains: bool) -> None:
    x = torch.tensor(EDGES, dtype=dtype, requires_grad=trains)
    y = sign(x)
    assert y.dtype == dtype
    assert y.tolist() == SIGNS


@pytest.mark.parametrize("trains", [False, True])
def test_nan_is_not_given_a_sign(trains: bool) -> None:
    y = sign(torch.tensor([math.nan, 3.0], requires_grad=trains))
    assert y.isnan().tolist() == [True, False]


def test_the_gradient_passes_where_the_input_is_at_most_one() -> None:
    x = torch.tensor([-1.5, -1.0, -0.2, 0.0, 0.7, 1.0, 1.5], requires_grad=True)
    upstream = torch.arange(1.0, 8.0)
    sign(x).backward(upstream)
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 2.0, 3.0, 4.0, 5.0, 6.0, 0.0]


def test_the_layout_of_a_map_is_kept() -> None:
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    assert sign(x).is_contiguous(memory_format=torch.channels_last)
