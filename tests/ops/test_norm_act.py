"""norm_act's native implementation against the reference in float64, and the reference against torch."""

from __future__ import annotations

import itertools

import pytest
import torch
from oracle import Case, check_norm, make
from torch import nn

from headgate.ops.batch_norm import BatchNorm
from headgate.ops.norm_act import norm_act, reference

DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("relu", "residual", "training"), list(itertools.product([False, True], repeat=3)))
def test_every_variant(
    isa: str, relu: bool, residual: bool, training: bool, dtype: torch.dtype, generator: torch.Generator
) -> None:
    check_norm(make(Case(relu=relu, residual=residual, training=training, dtype=dtype), generator))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 47])
def test_channels_around_a_vector(isa: str, channels: int, dtype: torch.dtype, generator: torch.Generator) -> None:
    check_norm(make(Case(shape=(2, channels, 5, 3), dtype=dtype, residual=True), generator))


@pytest.mark.parametrize("shape", [(1, 16, 1, 1), (1, 16, 1, 127), (1, 16, 16, 16), (3, 16, 1, 257), (2, 16, 23, 23)])
def test_rows_around_a_block(isa: str, shape: tuple[int, int, int, int], generator: torch.Generator) -> None:
    check_norm(make(Case(shape=shape), generator))


@pytest.mark.parametrize("threads", [1, 2, 3], indirect=True)
def test_threads(threads: int, generator: torch.Generator) -> None:
    inputs = make(Case(shape=(5, 16, 31, 29), residual=True), generator)
    check_norm(inputs)


def test_an_input_that_is_not_channels_last(generator: torch.Generator) -> None:
    check_norm(make(Case(channels_last=False, residual=True), generator))


@pytest.mark.parametrize("training", [False, True])
def test_reference_is_torchs_batch_norm(training: bool, generator: torch.Generator) -> None:
    module = nn.BatchNorm2d(8).double().train(training)
    with torch.no_grad():
        for tensor in (*module.parameters(), module.running_mean, module.running_var):
            tensor.copy_(torch.rand(8, generator=generator) + 0.5)
    norm = BatchNorm(
        module.weight, module.bias, module.running_mean.clone(), module.running_var.clone(), training, 0.1, module.eps
    )
    x = torch.randn(4, 8, 5, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    output = reference.norm_act(x, norm, None, relu=True)
    expected = module(x).relu()
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(norm.running_mean, module.running_mean)
    torch.testing.assert_close(norm.running_var, module.running_var)
    weights = torch.randn(output.shape, dtype=torch.float64, generator=generator)
    inputs = (x, module.weight, module.bias)
    for ours, theirs in zip(
        torch.autograd.grad((output * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_nan_reaches_the_output() -> None:
    x = torch.randn(1, 16, 4, 4)
    x[0, 3, 1, 2] = float("nan")
    norm = BatchNorm(torch.ones(16), torch.zeros(16), torch.zeros(16), torch.ones(16), False)
    assert norm_act(x, norm, None, relu=True).isnan().nonzero().tolist() == [[0, 3, 1, 2]]
