"""Cases of the fused operators, their reference in float64, and how large the terms behind each result are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numerics
import torch
from torch import Tensor

from headgate.ops.batch_norm import BatchNorm, normalise
from headgate.ops.decision import expand_groups, group_score
from headgate.ops.gated_norm import gated_norm
from headgate.ops.gated_norm import reference as gated_reference
from headgate.ops.norm_act import norm_act
from headgate.ops.norm_act import reference as norm_reference

SLOPE = 2.0
Results = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Case:
    shape: tuple[int, int, int, int] = (2, 16, 9, 7)  # of the output
    groups: int = 0  # decisions per pixel; 0: one per activation
    relu: bool = True
    residual: bool = False
    concatenated: bool = True
    training: bool = True
    counts: bool = True  # a gradient of the counts
    mean: float = 0.0  # of the sums, in standard deviations
    dtype: torch.dtype = torch.float32
    channels_last: bool = True


@dataclass
class Inputs:
    """In float64, but representable in the case's dtype."""

    case: Case
    final_sum: Tensor
    partial_sum: Tensor
    residual: Tensor | None
    grad_output: Tensor
    grad_counts: Tensor
    final: BatchNorm
    partial: BatchNorm
    threshold: Tensor
    score_var: Tensor | None


def _norm(channels: int, training: bool, mean: float, generator: torch.Generator) -> BatchNorm:
    weight, bias, running_mean, spread = torch.randn(4, channels, generator=generator)
    return BatchNorm(
        (1 + 0.3 * weight).double(),
        bias.double(),
        (mean + 0.1 * running_mean).double(),
        (1 + 0.2 * spread.abs()).double(),
        training,
    )


def _copy(norm: BatchNorm, dtype: torch.dtype = torch.float64) -> BatchNorm:
    tensors = [x.detach().to(dtype, copy=True) for x in norm[:4] if isinstance(x, Tensor)]
    weight, bias = tensors[0].requires_grad_(), tensors[1].requires_grad_()
    return norm._replace(weight=weight, bias=bias, running_mean=tensors[2], running_var=tensors[3])


def _separated(score: Tensor) -> Tensor:
    """For each decision a threshold in the widest gap near the score's upper third: rounding decides nothing."""
    values = score.transpose(0, 1).flatten(1).sort(1).values
    count = values.shape[1]
    first, last = int(0.6 * count), max(int(0.8 * count), int(0.6 * count) + 1)
    if last >= count:
        return (values[:, -1] - 0.5).float().double()
    gaps = values[:, first + 1 : last + 1] - values[:, first:last]
    at = first + gaps.argmax(1)
    rows = torch.arange(len(values))
    return ((values[rows, at] + values[rows, at + 1]) / 2).float().double()


def make(case: Case, generator: torch.Generator) -> Inputs:
    n, c, h, w = case.shape

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(case.dtype).double()

    final_sum, partial_sum = draw(n, c, h, w) + case.mean, draw(n, c, h, w) + case.mean
    final_sum, partial_sum = final_sum.to(case.dtype).double(), partial_sum.to(case.dtype).double()
    final, partial = (_norm(c, case.training, case.mean, generator) for _ in range(2))
    score_var = (0.5 + torch.rand(case.groups, generator=generator)).double() if case.groups else None
    score = _score(partial_sum, partial, score_var)
    threshold = _separated(score)
    margin = (score - threshold.view(1, -1, 1, 1)).abs()
    assert float((margin < numerics.BAND * (4 + case.mean)).double().mean()) == 0, "a margin lies in the rounding band"
    inputs = Inputs(
        case,
        final_sum,
        partial_sum,
        draw(n, c, h, w) if case.residual else None,
        draw(n, c, h, w),
        torch.randn(n, len(threshold), generator=generator).double(),
        final,
        partial,
        threshold,
        score_var,
    )
    if case.relu:  # where the ReLU's input is within rounding of 0 its gradient is anybody's: ask for none there
        before = _gated(inputs, relu=False)[0]
        inputs.grad_output = inputs.grad_output * (before.abs() > 100 * numerics.BAND * (1 + case.mean))
    return inputs


def _score(partial_sum: Tensor, partial: BatchNorm, score_var: Tensor | None) -> Tensor:
    normalised = normalise(partial_sum, _copy(partial))
    if score_var is None:
        return normalised.detach()
    return group_score(normalised, len(score_var), score_var.clone(), training=False, momentum=0.1).detach()


def _gated(inputs: Inputs, *, relu: bool) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return gated_reference.gated_norm(
            inputs.final_sum,
            inputs.partial_sum,
            _copy(inputs.final),
            _copy(inputs.partial),
            inputs.threshold,
            None if inputs.score_var is None else inputs.score_var.clone(),
            inputs.residual,
            slope=SLOPE,
            relu=relu,
        )


def run_gated(inputs: Inputs, *, exact: bool) -> Results:
    """Forward and backward of the reference in float64, or of the public operator in the case's dtype."""
    case = inputs.case
    dtype, small = (torch.float64, torch.float64) if exact else (case.dtype, torch.float32)
    memory_format = torch.channels_last if case.channels_last else torch.contiguous_format

    def leaf(x: Tensor) -> Tensor:
        return x.to(dtype, copy=True).contiguous(memory_format=memory_format).requires_grad_()

    if case.concatenated:
        leaves = [leaf(torch.cat((inputs.final_sum, inputs.partial_sum), 1))]
        sums: tuple[Tensor, Tensor | None] = (leaves[0], None)
    else:
        leaves = [leaf(inputs.final_sum), leaf(inputs.partial_sum)]
        sums = leaves[0], leaves[1]
    residual = None if inputs.residual is None else leaf(inputs.residual)
    final, partial = _copy(inputs.final, small), _copy(inputs.partial, small)
    threshold = inputs.threshold.to(small, copy=True).requires_grad_()
    score_var = None if inputs.score_var is None else inputs.score_var.to(small, copy=True)
    arguments = (final, partial, threshold, score_var, residual)
    if exact:
        pair = leaves[0].chunk(2, 1) if case.concatenated else leaves
        output, counts = gated_reference.gated_norm(*pair, *arguments, slope=SLOPE, relu=case.relu)
    else:
        output, counts = gated_norm(*sums, *arguments, slope=SLOPE, relu=case.relu)
        assert type(output.grad_fn).__name__ == "_GatedNormBackward", "the native operator did not serve this case"
        assert output.dtype == case.dtype
    grads = [inputs.grad_output.to(dtype), inputs.grad_counts.to(small) if case.counts else None]
    torch.autograd.backward([output, counts] if case.counts else [output], grads if case.counts else grads[:1])
    return collect(
        output=output,
        counts=counts,
        sums=torch.cat([x.grad for x in leaves if x.grad is not None], 1),
        final_weight=_grad(final.weight),
        final_bias=_grad(final.bias),
        partial_weight=_grad(partial.weight),
        partial_bias=_grad(partial.bias),
        threshold=_grad(threshold),
        residual=_grad(residual),
        final_mean=final.running_mean,
        final_var=final.running_var,
        partial_mean=partial.running_mean,
        partial_var=partial.running_var,
        score_var=score_var,
    )


def _grad(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.grad


def collect(**results: Tensor | None) -> Results:
    return {name: x.detach() for name, x in results.items() if x is not None}


def _per_channel(x: Tensor, reduce: Callable[..., Tensor]) -> Tensor:
    return reduce(x.abs(), (0, 2, 3))


def gated_bounds(inputs: Inputs, exact: Results) -> Results:
    """How far each result of the native operator may be from `exact`."""
    case = inputs.case
    count = inputs.final_sum.numel() / inputs.final_sum.shape[1]
    spread: dict[str, tuple[Tensor, Tensor]] = {}
    for name, x, norm in (("f", inputs.final_sum, inputs.final), ("p", inputs.partial_sum, inputs.partial)):
        norm = _copy(norm)
        normal = normalise(x, norm).detach()
        var = x.var((0, 2, 3), correction=0) if case.training else norm.running_var
        rstd = torch.rsqrt(var + norm.eps)
        # Rounding the mean shifts every normalised value.
        size = _per_channel(normal, torch.amax) + rstd * _per_channel(x, torch.amax)
        spread[name] = rstd, size
    (rstd_f, size_f), (rstd_p, size_p) = spread["f"], spread["p"]
    weight_f, weight_p = inputs.final.weight.abs(), inputs.partial.weight.abs()  # type: ignore[union-attr]
    candidate_f, candidate_p = (
        weight * size + bias.abs()
        for weight, size, bias in ((weight_f, size_f, inputs.final.bias), (weight_p, size_p, inputs.partial.bias))
    )
    grad = inputs.grad_output.abs()
    to_decision = grad * (candidate_f + candidate_p).view(1, -1, 1, 1)
    score = _score(inputs.partial_sum, inputs.partial, inputs.score_var)
    sigmoid = torch.sigmoid(SLOPE * (score - inputs.threshold.view(1, -1, 1, 1)))
    surrogate = SLOPE * sigmoid * (1 - sigmoid)
    share = torch.ones_like(weight_f)
    if inputs.score_var is not None:
        size = case.shape[1] // case.groups
        to_decision = to_decision.unflatten(1, (case.groups, size)).sum(2)
        share = (torch.rsqrt(inputs.score_var + 1e-5) / size).repeat_interleave(size)
    if case.counts:
        to_decision = to_decision + inputs.grad_counts.abs()[:, :, None, None]
    # Of the derivative itself, whose margin is off by the rounding of the score: |σ''| ≤ slope² / 8.
    to_margin = surrogate * to_decision
    surrogate_error = numerics.SURROGATE[case.dtype] * to_margin
    mass_margin = to_margin + SLOPE * to_decision
    if inputs.score_var is not None:
        to_margin, surrogate_error, mass_margin = (
            expand_groups(x, case.shape[1]) for x in (to_margin, surrogate_error, mass_margin)
        )
    at_p = share.view(1, -1, 1, 1)

    def spread_back(direct: Tensor, rstd: Tensor, size: Tensor) -> Tensor:
        """A gradient at a normalised sum, and what the batch statistics make of it, at the sum."""
        mean = direct.abs().sum((0, 2, 3)) / count
        if not case.training:
            return direct.abs() * rstd.view(1, -1, 1, 1)
        return (direct.abs() + (mean * (1 + size * size)).view(1, -1, 1, 1)) * rstd.view(1, -1, 1, 1)

    mass_f = grad.sum((0, 2, 3))
    magnitude_f = spread_back(grad * weight_f.view(1, -1, 1, 1), rstd_f, size_f)
    magnitude_p = spread_back(grad * weight_p.view(1, -1, 1, 1) + mass_margin * at_p, rstd_p, size_p)
    inexact_p = spread_back(surrogate_error * at_p, rstd_p, size_p)
    bounds = {
        "output": torch.maximum(candidate_f, candidate_p).view(1, -1, 1, 1)
        + (0 if inputs.residual is None else inputs.residual.abs()),
        "sums": torch.cat((magnitude_f, magnitude_p), 1),
    }
    bounds = {k: numerics.elementwise(v, exact[k], case.dtype) for k, v in bounds.items()}
    bounds["sums"] = bounds["sums"] + torch.cat((torch.zeros_like(inexact_p), inexact_p), 1)
    bounds |= {
        "counts": torch.zeros(()),
        "final_bias": numerics.total(mass_f),
        "partial_bias": numerics.total(mass_f),
        "final_weight": numerics.total(mass_f * size_f),
        "partial_weight": numerics.total(mass_f * size_p),
        "residual": torch.zeros(()),
    }
    groups = len(inputs.threshold)
    step = case.shape[1] // groups
    bounds["threshold"] = (numerics.total(mass_margin) + surrogate_error).sum((0, 2, 3))[::step]
    for name, x in (("final", inputs.final_sum), ("partial", inputs.partial_sum)):
        bounds[f"{name}_mean"] = numerics.total(_per_channel(x, torch.amax))
        bounds[f"{name}_var"] = numerics.total(1 + _per_channel(x - x.mean((0, 2, 3), keepdim=True), torch.amax) ** 2)
    if inputs.score_var is not None:
        bounds["score_var"] = numerics.total(inputs.score_var + size_p.amax() ** 2)
    return {name: bounds[name] for name in exact}


def check_gated(inputs: Inputs) -> None:
    """Compare the public operator, in the case's dtype, with the reference in float64."""
    exact, actual = run_gated(inputs, exact=True), run_gated(inputs, exact=False)
    assert actual.keys() == exact.keys()
    bounds = gated_bounds(inputs, exact)
    for name, value in exact.items():
        numerics.within(actual[name], value, bounds[name], f"{name} of {inputs.case}")


def run_norm(inputs: Inputs, *, exact: bool) -> Results:
    """`norm_act` of the final sum."""
    case = inputs.case
    dtype, small = (torch.float64, torch.float64) if exact else (case.dtype, torch.float32)
    memory_format = torch.channels_last if case.channels_last else torch.contiguous_format
    x = inputs.final_sum.to(dtype, copy=True).contiguous(memory_format=memory_format).requires_grad_()
    residual = None if inputs.residual is None else inputs.residual.to(dtype, copy=True).requires_grad_()
    norm = _copy(inputs.final, small)
    output = (norm_reference.norm_act if exact else norm_act)(x, norm, residual, relu=case.relu)
    assert exact or type(output.grad_fn).__name__ == "_NormActBackward"
    output.backward(inputs.grad_output.to(dtype))
    return collect(
        output=output,
        x=x.grad,
        weight=_grad(norm.weight),
        bias=_grad(norm.bias),
        residual=_grad(residual),
        mean=norm.running_mean,
        var=norm.running_var,
    )


def check_norm(inputs: Inputs) -> None:
    """Compare `norm_act`, in the case's dtype, with the reference in float64."""
    case = inputs.case
    if case.relu:
        with torch.no_grad():
            before = norm_reference.norm_act(inputs.final_sum, _copy(inputs.final), inputs.residual, relu=False)
        inputs.grad_output = inputs.grad_output * (before.abs() > 100 * numerics.BAND * (1 + case.mean))
    exact, actual = run_norm(inputs, exact=True), run_norm(inputs, exact=False)
    assert actual.keys() == exact.keys()
    norm = _copy(inputs.final)
    x, grad = inputs.final_sum, inputs.grad_output.abs()
    normal = normalise(x, norm).detach()
    var = x.var((0, 2, 3), correction=0) if case.training else inputs.final.running_var
    rstd = torch.rsqrt(var + norm.eps)
    size = _per_channel(normal, torch.amax) + rstd * _per_channel(x, torch.amax)
    weight, bias = inputs.final.weight.abs(), inputs.final.bias.abs()  # type: ignore[union-attr]
    mass = grad.sum((0, 2, 3))
    magnitude = weight * rstd * (grad.amax((0, 2, 3)) + mass * rstd.numel() / x.numel() * (1 + size * size))
    residual = 0 if inputs.residual is None else inputs.residual.abs()
    bounds = {
        "output": numerics.elementwise(
            (weight * size + bias).view(1, -1, 1, 1) + residual, exact["output"], case.dtype
        ),
        "x": numerics.elementwise(magnitude.view(1, -1, 1, 1), exact["x"], case.dtype),
        "weight": numerics.total(mass * size),
        "bias": numerics.total(mass),
        "residual": torch.zeros(()),
        "mean": numerics.total(_per_channel(x, torch.amax)),
        "var": numerics.total(1 + var + _per_channel(x - x.mean((0, 2, 3), keepdim=True), torch.amax) ** 2),
    }
    for name, value in exact.items():
        numerics.within(actual[name], value, bounds[name], f"{name} of {case}")
