"""The four masks and what they are ranked by."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from networks import digits, randomise_
from torch import Tensor, nn

from headgate.baselines.perforation_masks import grid_mask, impact, nearest_computed, pooling_usage, ranked_mask
from headgate.errors import ConfigError
from headgate.models.digits import digits_cnn

SIZES = [(1, 1), (1, 7), (5, 3), (8, 8), (13, 11)]
RATES = [0.0, 1 / 3, 0.5, 0.75, 0.99]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("size", SIZES)
def test_ranked_masks_have_the_size_asked_for_and_lie_within_each_other(size: tuple[int, int]) -> None:
    wider = torch.ones(size, dtype=torch.bool)
    for rate in RATES:
        mask = ranked_mask(torch.zeros(size), rate, seeded())
        assert int(mask.sum()) == max(1, round((1 - rate) * size[0] * size[1]))
        assert (mask <= wider).all()
        wider = mask


def test_uniform_masks_take_every_position_alike() -> None:
    draws = torch.stack([ranked_mask(torch.zeros(4, 4), 0.5, seeded(seed)) for seed in range(2000)])
    assert (draws.float().mean(0) - 0.5).abs().max() < 0.06  # five standard deviations


def test_the_largest_weights_are_computed_and_ties_are_broken_at_random() -> None:
    weight = torch.tensor([[3.0, 1.0, 2.0], [1.0, 4.0, 1.0]])
    masks = {tuple(ranked_mask(weight, 1 / 3, seeded(seed)).flatten().tolist()) for seed in range(40)}
    assert len(masks) == 3
    assert all(mask[0] and mask[2] and mask[4] for mask in masks)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("rate", RATES)
def test_grid_masks_are_crossings_of_spread_rows_and_columns(size: tuple[int, int], rate: float) -> None:
    mask = grid_mask(size, rate, seeded())
    rows, columns = mask.any(1), mask.any(0)
    assert torch.equal(mask, rows[:, None] & columns)
    for lines, length in ((rows, size[0]), (columns, size[1])):
        gaps = lines.nonzero().flatten().diff()
        pitch = length / int(lines.sum())
        assert ((gaps - pitch).abs() < 1).all()
    wanted = (1 - rate) * size[0] * size[1]
    assert abs(int(mask.sum()) - wanted) <= max(1.0, max(size) / 2)


def test_nearest_ties_are_broken_at_random() -> None:
    mask = torch.tensor([[True, False, True]])
    assert {int(nearest_computed(mask, seeded(seed))[0, 1]) for seed in range(20)} == {0, 2}


@pytest.mark.parametrize(
    "pool", [nn.MaxPool2d(3, 2), nn.MaxPool2d(3, 2, padding=1, ceil_mode=True), nn.AvgPool2d((2, 3), (3, 2), (1, 0))]
)
def test_usage_counts_the_windows_that_read_a_position(pool: nn.Module) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Dropout(), pool, nn.Conv2d(2, 2, 1))
    usage = pooling_usage(model, {"0": (9, 7), "5": (4, 3)})
    assert set(usage) == {"0"}
    for row, column in torch.cartesian_prod(torch.arange(9), torch.arange(7)).tolist():
        x = torch.full((1, 1, 9, 7), -1.0 if isinstance(pool, nn.MaxPool2d) else 0.0)
        x[0, 0, row, column] = 1.0
        assert usage["0"][row, column] == int((pool(x) > 0).sum())


def test_usage_of_a_convolution_whose_output_goes_elsewhere_is_not_known() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.pool, self.last = nn.Conv2d(1, 1, 3), nn.MaxPool2d(3, 2), nn.Conv2d(1, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return self.last(self.pool(x)) + x.mean()

    assert not pooling_usage(Net(), {"conv": (7, 7), "last": (3, 3)})


def test_impact_is_the_first_order_change_of_the_loss() -> None:
    model, batches = randomise_(digits_cnn(width=4)).double().eval(), digits(32, 16)
    batches = [(x.double(), labels) for x, labels in batches]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    found = impact(model.train(), batches, ["features.3"])["features.3"]
    assert model.training
    model.eval()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    expected = torch.zeros(8, 8, dtype=torch.float64)
    for x, labels in batches:
        for image, label in zip(x.split(1), labels.split(1), strict=True):
            sums = model.features[:4](image).detach().requires_grad_()
            loss = F.cross_entropy(model.classifier(model.avgpool(model.features[4:](sums)).flatten(1)), label)
            expected += (torch.autograd.grad(loss, sums)[0] * sums.detach()).abs()[0].sum(0) / 32
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-8)


def test_impact_reads_sums_that_are_overwritten_in_place() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ELU(), nn.Flatten(), nn.Linear(108, 10))
    inplace = nn.Sequential(plain[0], nn.ELU(inplace=True), *plain[2:])
    torch.testing.assert_close(impact(inplace, digits(32), ["0"])["0"], impact(plain, digits(32), ["0"])["0"])


def test_bad_rates() -> None:
    with pytest.raises(ConfigError, match=r"rate must be a share of skipped positions in \[0, 1\), got 1.0"):
        grid_mask((3, 3), 1.0, seeded())
    with pytest.raises(ConfigError, match=r"got -0\.5"):
        ranked_mask(torch.zeros(3, 3), -0.5, seeded())
