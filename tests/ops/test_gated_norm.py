"""gated_norm's native implementation against the reference in float64, on every instruction set."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numerics
import oracle
import pytest
import torch
from oracle import Case, check_gated, make, run_gated

from headgate.errors import BackendError
from headgate.ops import native
from headgate.ops.batch_norm import BatchNorm
from headgate.ops.gated_norm import gated_norm

DTYPES = [torch.float32, torch.bfloat16]
VARIANTS = list(itertools.product([0, 4], [False, True], [False, True], [False, True]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("groups", "relu", "residual", "training"), VARIANTS)
def test_every_variant(
    isa: str, groups: int, relu: bool, residual: bool, training: bool, dtype: torch.dtype, generator: torch.Generator
) -> None:
    case = Case(groups=groups, relu=relu, residual=residual, training=training, dtype=dtype)
    check_gated(make(case, generator))
    check_gated(make(replace(case, concatenated=False, counts=False), generator))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 47])
def test_channels_around_a_vector(isa: str, channels: int, dtype: torch.dtype, generator: torch.Generator) -> None:
    check_gated(make(Case(shape=(2, channels, 5, 3), dtype=dtype, residual=channels % 2 == 0), generator))


@pytest.mark.parametrize(
    ("channels", "groups"),
    [
        (8, 8),
        (16, 8),
        (24, 8),
        (16, 2),
        (32, 2),
        (16, 1),
        (48, 3),
        (64, 2),
        (96, 2),
        (12, 4),
        (40, 8),
        (13, 1),
        (80, 5),
    ],
)
def test_group_sizes(isa: str, channels: int, groups: int, generator: torch.Generator) -> None:
    """One, powers of two up to the vector and beyond, multiples of the vector, and neither."""
    case = Case(shape=(2, channels, 5, 3), groups=groups)
    check_gated(make(case, generator))
    check_gated(make(replace(case, residual=True, dtype=torch.bfloat16), generator))


@pytest.mark.parametrize("groups", [0, 4])
@pytest.mark.parametrize(
    "shape", [(1, 16, 1, 1), (7, 16, 1, 1), (1, 16, 1, 127), (1, 16, 16, 16), (3, 16, 1, 257), (2, 16, 23, 23)]
)
def test_rows_around_a_block(
    isa: str, shape: tuple[int, int, int, int], groups: int, generator: torch.Generator
) -> None:
    case = Case(shape=shape, groups=groups, residual=True)
    check_gated(make(case, generator))
    check_gated(make(replace(case, counts=False, residual=False), generator))


@pytest.mark.parametrize("groups", [0, 4])
@pytest.mark.parametrize("concatenated", [False, True])
def test_inputs_that_are_not_channels_last(concatenated: bool, groups: int, generator: torch.Generator) -> None:
    check_gated(make(Case(channels_last=False, concatenated=concatenated, groups=groups, residual=True), generator))


def test_a_large_mean_does_not_cost_the_variance(isa: str, generator: torch.Generator) -> None:
    """|mean| = 3000 standard deviations: Σx² − (Σx)² in float32 would keep nothing of the variance."""
    x = 3000 + torch.randn(4, 32, 16, 16, generator=generator)
    norms = [
        BatchNorm(torch.ones(16), torch.zeros(16), torch.zeros(16), torch.ones(16), True, momentum=1.0)
        for _ in range(2)
    ]
    output, _ = gated_norm(x, None, *norms, torch.full((16,), 9.0), None, None, slope=2.0, relu=False)
    for norm, half in zip(norms, x.double().chunk(2, 1), strict=True):
        torch.testing.assert_close(norm.running_var.double(), half.var((0, 2, 3)), rtol=1e-6, atol=0)
        torch.testing.assert_close(norm.running_mean.double(), half.mean((0, 2, 3)), rtol=1e-7, atol=0)
    partial = x[:, 16:].double()
    exact = (partial - partial.mean((0, 2, 3), keepdim=True)) / partial.std((0, 2, 3), correction=0, keepdim=True)
    # Rounding the mean to float32 costs 3000 · 2^−24.
    torch.testing.assert_close(output.double(), exact, rtol=1e-4, atol=3e-4)


def test_a_first_block_unlike_the_rest_does_not_cost_the_variance(isa: str) -> None:
    """Statistics are taken around a running mean, which starts far off here."""
    x = 1000 + torch.randn(4, 16, 32, 32, generator=torch.Generator().manual_seed(0))
    x[0] = 0
    x = x.contiguous(memory_format=torch.channels_last)
    zeros, ones = torch.zeros(16), torch.ones(16)
    norm = BatchNorm(ones, zeros, zeros.clone(), ones.clone(), True, momentum=1.0)
    gated_norm(x, x.clone(), norm, norm, zeros, None, None, slope=2.0, relu=True)
    torch.testing.assert_close(norm.running_var.double(), x.double().var((0, 2, 3)), rtol=1e-6, atol=0)


@pytest.mark.parametrize("threads", [1, 2, 3], indirect=True)
@pytest.mark.parametrize(("shape", "groups"), [((5, 16, 31, 29), 0), ((1, 16, 61, 67), 4), ((3, 24, 29, 31), 4)])
def test_threads(threads: int, shape: tuple[int, int, int, int], groups: int, generator: torch.Generator) -> None:
    """Parts of the rows meet within images; the same number of threads gives the same bits."""
    inputs = make(Case(shape=shape, groups=groups, residual=True), generator)
    check_gated(inputs)
    first, second = run_gated(inputs, exact=False), run_gated(inputs, exact=False)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_surrogate_gradient_over_its_whole_range(isa: str) -> None:
    """∂counts / ∂P with an identity norm is the surrogate's derivative itself, of margins up to overflow."""
    margin = torch.cat((torch.linspace(-60, 60, 4001), torch.tensor([0.0, -0.0, 1e-30, 1e30, -1e30, 3e38])))
    for dtype in DTYPES:
        partial = margin.to(dtype).view(1, 1, 1, -1).requires_grad_()
        one, zero = torch.ones(1), torch.zeros(1)
        norm = BatchNorm(one, zero, zero, one, training=False, eps=0.0)
        counts = gated_norm(partial, partial, norm, norm, zero, None, None, slope=2.0, relu=False)[1]
        counts.sum().backward()
        z = 2.0 * partial.detach().double()
        exact = 2.0 * torch.sigmoid(z) * torch.sigmoid(-z)
        assert partial.grad is not None
        # Rounding z costs its share of the exponential; beyond 2^−120 the kernels clamp.
        relative = numerics.SURROGATE[dtype] + numerics.UNIT[dtype] + 2 * z.abs() * numerics.UNIT[torch.float32]
        bound = relative * exact + 2.0**-120
        numerics.within(partial.grad, exact, bound, f"σ' in {dtype}")


def test_decisions_are_the_margins_sign() -> None:
    """A score equal to its threshold stays closed, exactly."""
    partial = torch.tensor([-1.0, -0.0, 0.0, 1e-38, 1.0]).view(1, 1, 1, -1)
    one, zero = torch.ones(1), torch.zeros(1)
    norm = BatchNorm(one, zero, zero, one, training=False, eps=0.0)
    output, counts = gated_norm(
        torch.full_like(partial, 5.0), partial, norm, norm, zero, None, None, slope=2.0, relu=False
    )
    assert counts.item() == 2
    assert torch.equal(output.flatten(), torch.tensor([-1.0, 0.0, 0.0, 5.0, 5.0]))


def test_nan_reaches_the_output() -> None:
    x = torch.randn(1, 32, 4, 4)
    x[0, 3, 1, 2] = float("nan")
    norm = [BatchNorm(torch.ones(16), torch.zeros(16), torch.zeros(16), torch.ones(16), False) for _ in range(2)]
    output, _ = gated_norm(x, None, *norm, torch.full((16,), -9.0), None, None, slope=2.0, relu=True)
    assert output.isnan().nonzero().tolist() == [[0, 3, 1, 2]]


def test_gradients_that_nobody_wants(generator: torch.Generator) -> None:
    """Frozen sums, frozen parameters, only the counts, and none at all."""
    inputs = make(Case(residual=True), generator)
    everything = run_gated(inputs, exact=False)
    z = torch.cat((inputs.final_sum, inputs.partial_sum), 1).float()
    threshold = inputs.threshold.float().requires_grad_()

    def call(z: torch.Tensor, threshold: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        norms = [oracle._copy(norm, torch.float32) for norm in (inputs.final, inputs.partial)]
        residual = None if inputs.residual is None else inputs.residual.float()
        return gated_norm(z, None, *norms, threshold, None, residual, slope=oracle.SLOPE, relu=True)

    output, counts = call(z, threshold)
    torch.autograd.backward([output, counts], [inputs.grad_output.float(), inputs.grad_counts.float()])
    assert torch.equal(threshold.grad, everything["threshold"])
    leaf = z.clone().requires_grad_()
    call(leaf, threshold)[1].backward(inputs.grad_counts.float())
    assert leaf.grad is not None
    assert leaf.grad[:, :16].count_nonzero() == 0
    assert leaf.grad[:, 16:].count_nonzero() > 0
    with torch.no_grad():
        assert not call(z, threshold)[0].requires_grad


def test_second_derivatives_are_refused(generator: torch.Generator) -> None:
    x = torch.randn(1, 32, 3, 3, generator=generator).requires_grad_()
    norm = BatchNorm(torch.ones(16), torch.zeros(16), torch.zeros(16), torch.ones(16), True)
    output, _ = gated_norm(x, None, norm, norm, torch.zeros(16), None, None, slope=2.0, relu=False)
    with pytest.raises(BackendError, match="no second derivative"):
        torch.autograd.grad(output.sum(), x, create_graph=True)


def test_autograd_notices_that_running_statistics_changed(generator: torch.Generator) -> None:
    x = torch.randn(2, 32, 3, 3, generator=generator)
    norm = BatchNorm(torch.ones(16), torch.zeros(16), torch.zeros(16), torch.ones(16), True)
    score_var = torch.ones(4)
    versions = [t._version for t in (norm.running_mean, norm.running_var, score_var)]
    gated_norm(x, None, norm, norm, torch.zeros(4), score_var, None, slope=2.0, relu=False)
    assert [t._version for t in (norm.running_mean, norm.running_var, score_var)] > versions


@pytest.mark.skipif(not native.available(), reason="headgate._native is not built, or HEADGATE_NATIVE=0")
def test_a_slice_of_a_concatenated_sum_is_not_copied() -> None:
    z = torch.randn(2, 32, 3, 3).contiguous(memory_format=torch.channels_last)
    final_sum, partial_sum = z.chunk(2, 1)
    assert native.channels_last(partial_sum) is partial_sum
    assert native.view(final_sum) == (z.data_ptr(), 32)
    strided = torch.randn(2, 16, 3, 7).contiguous(memory_format=torch.channels_last)[..., ::2]
    assert native.channels_last(strided) is not strided
