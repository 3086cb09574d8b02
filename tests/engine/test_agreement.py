"""The engine against the trained models on all test images: accuracy, predictions, decisions and MACs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import headgate as hg
from headgate.train import DataConfig, evaluate
from headgate.train.prepare import evaluation_batches

ACCURACY = 5e-4
AGREEMENT = 0.999
DECIDED_OTHERWISE = 1e-4
"""Share of a layer's MACs that decisions within rounding of their threshold may move."""


@pytest.mark.slow
@pytest.mark.parametrize("name", hg.list_pretrained())
def test_all_test_images(name: str, cifar10: Path, tmp_path: Path) -> None:
    model = hg.pretrained(name)
    path = tmp_path / "model.hgplan"
    hg.export(model, path, example_input=torch.zeros(1, 3, 32, 32))
    batches = [*evaluation_batches(model, DataConfig(source=str(cifar10)))]
    labels = torch.cat([labels for _, labels, _ in batches])
    assert len(labels) == 10_000
    expected = evaluate(model, batches)
    for paths in ("sparse", "masked"):
        engine = hg.Engine(path, paths=paths)
        predictions = torch.cat([torch.from_numpy(engine(images.contiguous())).argmax(1) for images, *_ in batches])
        assert abs((predictions == labels).double().mean().item() - expected.accuracy) <= ACCURACY
        assert (predictions == expected.predictions).double().mean() >= AGREEMENT
        executed = {layer.name: layer for layer in engine.stats()}
        for layer in expected.counts.by_layer():  # means of an image
            ours = executed[layer.name]
            assert ours.dense_macs == len(labels) * layer.dense_macs
            difference = abs(ours.executed_macs / len(labels) - layer.executed_macs)
            assert difference <= DECIDED_OTHERWISE * layer.dense_macs, layer.name
