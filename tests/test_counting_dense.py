"""`count` on dense layers, on what it cannot count, and what it leaves behind."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from headgate.counting import count
from headgate.errors import DataError, ModelError
from headgate.nn import GateConfig, GatedConv2d

TORCHVISION = (
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "inception_v3",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "regnet_y_400mf",
    "resnet18",
    "resnet50",
    "resnext50_32x4d",
    "shufflenet_v2_x1_0",
    "squeezenet1_1",
    "vgg16_bn",
)


def on_meta(name: str) -> nn.Module:
    """A torchvision model without weights."""
    build = torchvision.models.get_model_builder(name)
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    try:
        with torch.device("meta"):
            return build(weights=None, **options).eval()
    except NotImplementedError:  # its constructor computes with tensors
        return build(weights=None, **options).eval().to("meta")


def torch_macs(model: nn.Module, x: Tensor) -> int:
    """MACs per image by torch's own counter."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    assert counter.get_total_flops() % (2 * len(x)) == 0
    return counter.get_total_flops() // (2 * len(x))


@pytest.mark.parametrize("name", TORCHVISION)
def test_equals_torchs_flop_counter(name: str) -> None:
    model = on_meta(name)
    x = torch.empty(2, 3, *(2 * [299 if name == "inception_v3" else 224]), device="meta")
    counts = count(model, x)
    assert counts.network_dense_macs == torch_macs(model, x)
    assert counts.by_image(network=True).tolist() == 2 * [counts.network_dense_macs]
    assert counts.uncounted == ()
    assert all(".aux" in f".{layer.lower()}" for layer in counts.uncalled)
    assert (counts.mac_reduction, counts.network_mac_reduction, counts.density) == (1.0, 1.0, 1.0)
    assert counts.dense_macs == 0
    assert counts.by_image().tolist() == [0, 0]


def test_what_is_not_counted_is_listed_and_adds_up() -> None:
    model, x = on_meta("swin_t"), torch.empty(2, 3, 224, 224, device="meta")
    counts = count(model, x)
    listed = sum(operation.macs for operation in counts.uncounted if operation.macs is not None)
    assert counts.network_dense_macs + listed == torch_macs(model, x)
    assert {operation.operation for operation in counts.uncounted} == {"aten.bmm", "aten.addmm"}
    assert "features.1.0.attn" in {operation.name for operation in counts.uncounted}
    assert "features.1.0.attn.qkv" in counts.uncalled
    assert "not counted: aten.bmm in features.1.0.attn, " in str(counts)
    assert "never ran: features.1.0.attn.qkv" in str(counts)


class Odd(nn.Module):
    """A convolution that runs twice, a functional one, a transposed one, attention, a GRU, an unused head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding="same")
        self.up = nn.ConvTranspose2d(4, 4, 2, stride=2)
        self.weight = nn.Parameter(torch.randn(4, 4, 1, 1))
        self.attention = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.rnn = nn.GRU(4, 4, batch_first=True)
        self.unused = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(input=self.conv(x))
        x = nn.functional.conv2d(self.up(x), self.weight)
        tokens = self.attention(x.flatten(2).transpose(1, 2))
        return self.rnn(tokens)[0]


def test_unsupported_layers_are_named() -> None:
    model = Odd().eval()
    counts = count(model, torch.randn(3, 4, 5, 4))
    macs = 5 * 4 * 4 * 4 * 9
    names = [layer.name for layer in counts.layers]
    assert names == ["conv", "conv#2", "attention.linear1", "attention.linear2"]
    assert [layer.dense_macs for layer in counts.layers] == [macs, macs, 80 * 4 * 8, 80 * 4 * 8]
    listed = {(operation.name, operation.operation): operation.macs for operation in counts.uncounted}
    assert listed["up", "aten.convolution"] == 20 * 4 * 4 * 4
    assert listed["", "aten.convolution"] == 80 * 4 * 4
    assert ("rnn", "GRU") in listed
    assert any(name.startswith("attention.self_attn") for name, _ in listed)
    assert "unused" in counts.uncalled


def test_crops_in_the_batch_and_tokens() -> None:
    class Crops(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 4, 1)
            self.linear = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x.repeat_interleave(5, 0))
            return self.linear(x.movedim(1, 3))

    counts = count(Crops(), torch.randn(2, 2, 3, 3))
    assert [layer.calls for layer in counts.layers] == [5, 5]
    assert [layer.dense_macs for layer in counts.layers] == [5 * 9 * 8, 5 * 9 * 12]
    assert counts.by_image(network=True).tolist() == 2 * [5 * 9 * 20]


def test_a_convolution_that_pads_by_itself() -> None:
    class Same(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(nn.functional.pad(input, (0, 1, 0, 1)))

    counts = count(nn.Sequential(Same(3, 4, 3, stride=2)), torch.randn(1, 3, 8, 8))
    assert counts.layers[0].shape.out_size == (4, 4)
    assert counts.network_dense_macs == 16 * 4 * 27


def small(**options: object) -> nn.Sequential:
    gated = GatedConv2d(
        nn.Conv2d(8, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        GateConfig(groups=2, **options),  # type: ignore[arg-type]
    )
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), gated, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
    )


def test_leaves_no_trace() -> None:
    model = small()
    model.train()
    model[1].eval()  # a part that someone froze

    class Draws(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            random.random()
            np.random.rand()  # noqa: NPY002
            return x + torch.randn_like(x)

    model.insert(2, Draws())
    hooks = {module: (len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    generators = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    x = torch.randn(4, 3, 6, 6)
    torch.set_rng_state(generators[2])
    count(model, x)
    assert model.training
    assert not model[1].training
    assert model[1].observer is None
    assert {m: (len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()} == hooks
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert random.getstate() == generators[0]
    assert np.random.get_state()[1].tolist() == generators[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), generators[2])
    assert torch.is_grad_enabled()


def test_restores_after_an_error() -> None:
    model = small().train()
    with pytest.raises(RuntimeError):
        count(model, torch.randn(2, 5, 6, 6))
    assert model.training
    assert all(not module._forward_hooks for module in model.modules())
    assert model[1].observer is None
    assert count(model, torch.randn(2, 3, 6, 6)).images == 2


def test_loaders_of_all_kinds_agree() -> None:
    model, x, y = small(), torch.randn(7, 3, 6, 6), torch.arange(7)
    whole = count(model, x)
    batches = [(x[:3], y[:3]), [x[3:6], y[3:6]], (x[6:], y[6:])]
    assert count(model, batches).to_dict() == whole.to_dict()
    assert count(model, iter(batches)).to_dict() == whole.to_dict()
    assert count(model, [*batches[:2], (x[:0], y[:0]), batches[2]]).to_dict() == whole.to_dict()
    assert count(model, batches, progress=True).to_dict() == whole.to_dict()
    first = count(model, batches, limit=4)
    assert first.by_image().tolist() == whole.by_image()[:4].tolist()


def test_limit_does_not_fetch_more() -> None:
    def batches() -> object:
        yield torch.randn(2, 3, 6, 6)
        raise AssertionError("one batch was enough")

    assert count(small(), batches(), limit=2).images == 2  # type: ignore[arg-type]


def test_index_restores_the_order_and_drops_copies() -> None:
    model, x = small(), torch.randn(6, 3, 6, 6)
    order = torch.tensor([4, 1, 5, 0, 2, 3, 4])
    shuffled = [(x[part], torch.zeros(len(part)), part) for part in order.split(3)]
    assert count(model, shuffled).by_image().tolist() == count(model, x).by_image().tolist()
    with pytest.raises(DataError, match="some with and some without"):
        count(model, [shuffled[0], x])


def test_wrapped_models() -> None:
    model, x = small(), torch.randn(4, 3, 6, 6)
    expected = count(model, x).to_dict()
    assert count(nn.DataParallel(model), x).to_dict() == expected


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_model_is_counted() -> None:
    model, x = small().eval(), torch.randn(4, 3, 6, 6)
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        compiled(x)
    assert count(compiled, x).to_dict() == count(model, x).to_dict()


@pytest.mark.parametrize(
    ("make", "loader", "error", "message"),
    [
        (lambda: nn.Linear(3, 2), torch.zeros(1, 3), ModelError, "must have convolutions to count, got Linear"),
        (small, [], DataError, "at least one image, got an empty loader"),
        (small, [torch.zeros(2)], DataError, r"\(n, c, h, w\), got a tensor of shape \(2,\)"),
        (small, [{"x": torch.zeros(1, 3, 6, 6)}], DataError, "got dict"),
        (small, [torch.zeros(1, 3, 6, 6), torch.zeros(1, 3, 8, 8)], DataError, "count each size by itself"),
    ],
)
def test_errors(make: Callable[[], nn.Module], loader: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        count(make(), loader)  # type: ignore[arg-type]


def test_limit_must_be_positive() -> None:
    with pytest.raises(DataError, match="at least one image, got 0"):
        count(small(), torch.zeros(1, 3, 6, 6), limit=0)


def test_layers_that_run_for_some_images_only() -> None:
    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.always, self.sometimes = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.always(x)
            return self.sometimes(x) if len(x) > 1 else x

    with pytest.raises(ModelError, match="with and without 'sometimes'"):
        count(Sometimes(), [torch.zeros(2, 1, 4, 4), torch.zeros(1, 1, 4, 4)])
    with pytest.raises(ModelError, match="'sometimes' in some batches only"):
        count(Sometimes(), [torch.zeros(1, 1, 4, 4), torch.zeros(2, 1, 4, 4)])


def test_gated_layer_on_several_maps_per_image() -> None:
    gated = small()[1]
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten(0, 1), nn.Unflatten(0, (-1, 8)), gated)
    assert count(model, torch.randn(2, 3, 4, 4)).images == 2

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gated = gated

        def forward(self, x: Tensor) -> Tensor:
            return self.gated(x.repeat(2, 1, 1, 1))

    with pytest.raises(ModelError, match="one map per image at a time, got 4 maps in 'gated' for 2 images"):
        count(Twice(), torch.randn(2, 8, 4, 4))
