"""What goes with a checkpoint: the preprocessing it carries, and the trained models that come with headgate."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from headgate import models
from headgate.checkpoint import Preprocess, list_pretrained, pretrained, save, shipped
from headgate.convert import gate_
from headgate.errors import ConfigError, DtypeError, ModelError, ShapeError
from headgate.nn import GateConfig, gated_layers


def test_preprocess() -> None:
    preprocess = Preprocess([0.5, 0.25], [0.5, 0.125], classes=["a", "b"])
    x = torch.rand(3, 2, 4, 5)
    expected = torch.stack([(x[:, 0] - 0.5) / 0.5, (x[:, 1] - 0.25) / 0.125], 1)
    assert torch.equal(preprocess(x), expected)
    assert torch.equal(preprocess(x[0]), expected[0])
    assert preprocess(x.bfloat16()).dtype == torch.bfloat16
    assert Preprocess.from_dict(preprocess.to_dict()) == preprocess
    assert repr(preprocess) == "Preprocess(mean=[0.5, 0.25], std=[0.5, 0.125], input_size=None)"


@pytest.mark.usefixtures("unchecked_types")
def test_preprocess_errors() -> None:
    preprocess = Preprocess([0.5], [0.5])
    with pytest.raises(DtypeError, match=r"got torch\.uint8; divide bytes by 255"):
        preprocess(torch.zeros(1, 1, 4, 4, dtype=torch.uint8))
    for shape in ((1, 3, 4, 4), (4, 4)):
        with pytest.raises(ShapeError, match=r"images must be \(n, 1, h, w\), got"):
            preprocess(torch.zeros(shape))
    with pytest.raises(ConfigError, match="one value per channel, got 1 and 2"):
        Preprocess([0.5], [0.5, 0.5])
    for mean, std in (([0.5], [0.0]), ([float("nan")], [1.0]), ([0.5], [-1.0])):
        with pytest.raises(ConfigError, match="mean must be finite and std positive"):
            Preprocess(mean, std)


def test_preprocess_is_invisible_to_torch() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU())
    state, text, x = model.state_dict().keys(), repr(model), torch.randn(3, 1, 8, 8)
    expected = model(x)
    model.preprocess = Preprocess([0.5], [0.5])
    assert model.state_dict().keys() == state
    assert repr(model) == text
    assert torch.equal(model(x), expected)
    assert len(list(model.buffers())) == 0
    assert torch.equal(torch.fx.symbolic_trace(model)(x), expected)
    assert copy.deepcopy(model).preprocess == model.preprocess
    assert torch.equal(model.to(torch.float64).preprocess(x.double()), (x.double() - 0.5) / 0.5)


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(shipped, "_shipped", lambda: tmp_path)
    for name in ("digits-gated", "digits-dense"):
        model = models.create("digits-resnet", width=8)
        if name.endswith("gated"):
            gate_(model, GateConfig(groups=4))
        model.preprocess = Preprocess([0.5], [0.5])
        save(model, tmp_path / f"{name}.safetensors")
        (tmp_path / f"{name}.md").write_text("a card")
    return tmp_path


def test_pretrained(shop: Path) -> None:
    assert list_pretrained() == ("digits-dense", "digits-gated")
    model = pretrained("digits-gated")
    assert not model.training
    assert gated_layers(model)
    assert model(model.preprocess(torch.rand(1, 1, 8, 8))).shape == (1, 10)


def test_unknown_pretrained(shop: Path) -> None:
    message = "must be one of digits-dense, digits-gated, got 'digits-gate'; did you mean 'digits-gated'"
    with pytest.raises(ModelError, match=message):
        pretrained("digits-gate")
    for name in ("../digits-gated", "", "x"):
        with pytest.raises(ModelError, match="must be one of"):
            pretrained(name)


def test_shipped_models_have_cards_and_load() -> None:
    folder = shipped._shipped()
    for name in list_pretrained():
        assert folder.joinpath(f"{name}.md").is_file(), f"{name} has no model card"
        assert isinstance(pretrained(name).preprocess, Preprocess)
