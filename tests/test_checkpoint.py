"""Models come back from a file as they were, or an error says why not and nothing has changed."""

from __future__ import annotations

import copy
import errno
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

from headgate import models
from headgate.checkpoint import Preprocess, info, load, save
from headgate.convert import gate_, gated_structure
from headgate.counting import count
from headgate.errors import CheckpointError, ConfigError
from headgate.nn import GateConfig, gated_layers, shift_thresholds_


def trained(name: str = "digits-resnet", config: GateConfig | None = None, **options: Any) -> nn.Module:
    """A model whose statistics and thresholds are not the initial ones, in evaluation mode."""
    model = models.create(name, width=8, **options)
    if config is not None:
        gate_(model, config)
    channels, height, width = model.architecture.input_shape()
    model.train()
    for _ in range(2):
        model(torch.randn(4, channels, height, width))
    for layer in gated_layers(model).values():
        layer.gate.threshold.data.normal_(0, 0.3)
    return model.eval()


def images(n: int = 3) -> Tensor:
    return torch.randn(n, 1, 8, 8)


GATES = [
    GateConfig(groups=4, shuffle=True),
    GateConfig(groups=2, granularity="group", norm="shared"),
    GateConfig(groups=2, granularity="channel", grouped=False),
    GateConfig(granularity="l1norm"),
    GateConfig(granularity="fc"),
    GateConfig(groups=2, channel_bound=0.1, threshold=0.5, slope=3.0, exclude=("layer1.0.conv1",)),
]


@pytest.mark.parametrize("config", [None, *GATES], ids=lambda c: "dense" if c is None else c.granularity)
def test_round_trip(config: GateConfig | None, tmp_path: Path) -> None:
    model = trained(config=config)
    model.preprocess = Preprocess([0.5], [0.25], input_size=(8, 8), classes=list("0123456789"))
    if config is not None:
        shift_thresholds_(model, 0.125)
    save(
        model, tmp_path / "model.safetensors", metadata={"accuracy": 0.75, "note": "ä", "epochs": 3, "seen": [1, None]}
    )
    again = load(tmp_path / "model.safetensors")
    x = images()
    assert not again.training
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    assert again.preprocess == model.preprocess
    assert models.identify(again) == models.identify(model)
    assert count(again, x).to_dict() == count(model, x).to_dict()
    if config is not None:
        assert gated_structure(again) == gated_structure(model)
    about = info(tmp_path / "model.safetensors")
    assert about.metadata == {"accuracy": 0.75, "note": "ä", "epochs": 3, "seen": [1, None]}
    assert (about.version, about.model, about.preprocess) == (1, "ResNet", model.preprocess)
    assert (about.structure is None) == (config is None)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_saving_and_loading_change_nothing_else(tmp_path: Path) -> None:
    model = trained(config=GATES[0]).train()
    before, generator = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    save(model, tmp_path / "a")
    load(tmp_path / "a")
    assert torch.equal(torch.get_rng_state(), generator)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_a_torchvision_model_that_was_gated_is_recognised(name: str, tmp_path: Path) -> None:
    model = torchvision.models.get_model(name, num_classes=7).eval()
    gate_(model, GateConfig(groups=4))
    save(model, tmp_path / "a.safetensors")
    about = info(tmp_path / "a.safetensors")
    expected = models.Architecture(name=f"torchvision/{name}", num_classes=7, in_channels=3)
    assert about.architecture == expected.to_dict()
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "a.safetensors")(x), model(x))


def test_wrappers_are_left_out(tmp_path: Path) -> None:
    model = trained(config=GATES[0])
    save(nn.DataParallel(model), tmp_path / "a")
    assert load(tmp_path / "a").state_dict().keys() == model.state_dict().keys()
    wrapped = nn.DataParallel(trained(config=GATES[0]))
    assert load(tmp_path / "a", model=wrapped) is wrapped
    x = images()
    assert torch.equal(wrapped.module(x), model(x))


class Own(nn.Module):
    """Not an architecture that headgate can build; two of its weights are one, and one is a view."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.norm, self.head, self.tied = nn.BatchNorm2d(width), nn.Linear(width, width), nn.Linear(width, width)
        self.tied.weight = self.head.weight
        self.register_buffer("table", torch.arange(12.0).view(3, 4))
        self.register_buffer("corner", self.table[:2, :2])
        self.register_buffer("nothing", torch.zeros(0))
        self.register_buffer("also_nothing", torch.zeros(0))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.second(self.first(x).relu())).relu()
        return self.tied(self.head(x.mean((2, 3))))


def test_own_models_and_shared_tensors(tmp_path: Path) -> None:
    model = Own().eval()
    gate_(model, GateConfig(groups=2))
    save(model, tmp_path / "own")
    about = info(tmp_path / "own")
    assert (about.architecture, about.model, about.aliases) == (None, "Own", {"tied.weight": "head.weight"})
    with pytest.raises(CheckpointError, match="holds a Own, which headgate cannot build by itself; pass model="):
        load(tmp_path / "own")
    x = images()
    for target in (Own(), Own()):
        if target.training:
            gate_(target, GateConfig(groups=2))
        again = load(tmp_path / "own", model=target)
        assert again is target
        assert again.training
        assert again.tied.weight is again.head.weight
        assert torch.equal(again.corner, model.corner)
        with torch.no_grad():
            assert torch.equal(again.eval()(x), model(x))


def test_a_dense_model_is_gated_on_loading(tmp_path: Path) -> None:
    model, target = trained(config=GATES[1]), models.create("digits-resnet", width=8)
    save(model, tmp_path / "a")
    assert load(tmp_path / "a", model=target) is target
    assert gated_structure(target) == gated_structure(model)
    assert target.training


def test_half_precision_comes_back_as_such(tmp_path: Path) -> None:
    model = trained().bfloat16()
    save(model, tmp_path / "a")
    again = load(tmp_path / "a")
    assert {p.dtype for p in again.parameters()} == {torch.bfloat16}
    into = load(tmp_path / "a", model=models.create("digits-resnet", width=8))
    assert {p.dtype for p in into.parameters()} == {torch.float32}  # a given model keeps its own


# ------------------------------------------------------------------------ errors


def header_of(path: Path) -> dict[str, Any]:
    with safetensors.safe_open(path, "pt") as file:
        return json.loads(file.metadata()["headgate"])


def rewritten(path: Path, **changes: Any) -> None:
    text = json.dumps(header_of(path) | changes)
    safetensors.torch.save_file(safetensors.torch.load_file(path), path, {"headgate": text})


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def text(path: Path) -> None:
    path.write_text("a plain text that is no checkpoint")


def foreign(path: Path) -> None:
    safetensors.torch.save_file({"weight": torch.zeros(3)}, path)


def damaged(path: Path) -> None:
    safetensors.torch.save_file({"weight": torch.zeros(3)}, path, {"headgate": '{"version": 1'})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (Path.unlink, "no such file"),
        (truncate, "is truncated or no safetensors file"),
        (lambda path: path.write_bytes(b""), "is truncated or no safetensors file"),
        (lambda path: path.write_bytes(struct.pack("<Q", 1 << 40)), "is truncated or no safetensors file"),
        (text, "is truncated or no safetensors file"),
        (foreign, "was not written by headgate.save"),
        (damaged, "damaged headgate metadata"),
        (lambda path: rewritten(path, version=2), "has format 2, this headgate reads up to 1; update headgate"),
        (
            lambda path: rewritten(path, architecture={"name": "resnet2000"}),
            "'resnet2000'.*, which this headgate cannot build: .*",
        ),
        (lambda path: rewritten(path, architecture={"name": "resnet20", "depth": 3}), "cannot build: .*'depth': 3"),
        (lambda path: rewritten(path, architecture="resnet20"), "cannot build"),
        (lambda path: rewritten(path, preprocess={"mean": [1.0]}), "damaged headgate metadata"),
        (lambda path: (path.unlink(), path.mkdir()), "is a folder, not a checkpoint"),
    ],
)
def test_files_that_cannot_be_loaded(spoil: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save(trained(), path)
    spoil(path)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)


def unchanged(model: nn.Module) -> Callable[[], bool]:
    state = copy.deepcopy(model.state_dict())
    return lambda: (
        model.state_dict().keys() == state.keys()
        and all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: models.create("digits-resnet", width=16),
            r"another model than this ResNet: of another shape: conv1.weight: \(8, 1, 3, 3\) in the file, "
            r"\(16, 1, 3, 3\) in the model, .* and \d+ more",
        ),
        (
            lambda: models.create("digits-cnn", width=8),
            "gated ResNet, which DigitsCNN cannot become: .*'layer1.0.conv1'",
        ),
        (
            lambda: models.create("resnet20", width=8, in_channels=1),
            "missing in the file: layer1.1.conv1.weight, .* more",
        ),
        (lambda: trained(config=GateConfig(groups=4)), "is gated with shuffle=True, got False in model"),
        (
            lambda: trained(config=GateConfig(groups=4, shuffle=True, exclude=("layer2.*",))),
            "is gated with exclude=.*|is gated with .* in 'layer2.0.conv1', got None",
        ),
    ],
)
def test_a_checkpoint_of_another_model(make: Callable[[], nn.Module], message: str, tmp_path: Path) -> None:
    save(trained(config=GATES[0]), tmp_path / "a")
    model = make()
    gates, same = list(gated_layers(model)), unchanged(model)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "a", model=model)
    assert same()
    assert list(gated_layers(model)) == gates


def test_a_dense_checkpoint_for_a_gated_model(tmp_path: Path) -> None:
    save(trained(), tmp_path / "a")
    with pytest.raises(CheckpointError, match="holds a dense ResNet, got a gated ResNet; pass a dense one"):
        load(tmp_path / "a", model=trained(config=GATES[0]))


def test_unexpected_names(tmp_path: Path) -> None:
    save(trained("resnet20", in_channels=1), tmp_path / "a")
    with pytest.raises(CheckpointError, match=r"not in the model: layer1\.1\..* and \d+ more"):
        load(tmp_path / "a", model=models.create("digits-resnet", width=8))


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, model = tmp_path / "model.safetensors", trained()
    save(model, path, metadata={"epoch": 1})
    before = path.read_bytes()
    real = os.write

    def fills_up(descriptor: int, data: memoryview) -> int:
        if os.fstat(descriptor).st_size >= 4096:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data[:4096])

    monkeypatch.setattr(os, "write", fills_up)
    with pytest.raises(CheckpointError, match=f"cannot write {path}: No space left on device"):
        save(model, path, metadata={"epoch": 2})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file or directory"):
        save(trained(), tmp_path / "none" / "a")


@pytest.mark.parametrize("value", [float("nan"), object(), {1, 2}])
def test_metadata_is_plain(value: object, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="metadata must be finite, plain JSON values"):
        save(nn.Conv2d(1, 1, 1), tmp_path / "a", metadata={"x": value})
    assert list(tmp_path.iterdir()) == []


def test_states_that_cannot_be_stored(tmp_path: Path) -> None:
    class Extra(nn.Conv2d):
        def get_extra_state(self) -> dict[str, int]:
            return {"a": 1}

    with pytest.raises(CheckpointError, match="expected a state of tensors, got '_extra_state': dict"):
        save(Extra(1, 1, 1), tmp_path / "a")
    with pytest.raises(CheckpointError, match="'weight' is a meta, sparse or quantized tensor"):
        save(nn.Conv2d(1, 1, 1, device="meta"), tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
