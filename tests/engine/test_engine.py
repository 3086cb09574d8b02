"""The native engine against the plan interpreter, the model and itself."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.models
from agreement import FLOAT32, check, gated, plan_of, undoubted
from plan_networks import EveryOperator, Gated, settle
from torch import Tensor, nn

import headgate as hg
from headgate import models
from headgate.errors import ConfigError, DtypeError, PlanError, ShapeError
from headgate.nn import gated_layers


def agree(path: Path, *, shift: float = 0.0) -> tuple[hg.Engine, Tensor]:
    """The engine makes of images that leave no decision in doubt what the interpreter does."""
    x, run = undoubted(path, shift=shift)
    engine = hg.Engine(path, threads=2)
    if shift:
        engine.shift_thresholds(shift)
    output = torch.from_numpy(engine(x.numpy()))
    check(run, output, {layer.name: (layer.decisions, layer.open_decisions) for layer in engine.stats()})
    return engine, x


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("granularity", ["activation", "group", "channel"])
def test_gated_networks(granularity: str, shuffle: bool, isa: str, tmp_path: Path) -> None:
    torch.manual_seed(2)
    x = torch.randn(3, 3, 13, 12)
    model = gated(x, Gated(), granularity=granularity, shuffle=shuffle)
    agree(plan_of(model, x, tmp_path))


@pytest.mark.parametrize("granularity", ["activation", "group"])
@pytest.mark.parametrize("options", [{"channel_bound": 0.4}, {"grouped": False}, {"norm": "shared"}], ids=str)
def test_options_of_gates(granularity: str, options: dict[str, Any], isa: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    x = torch.randn(3, 3, 13, 12)
    agree(plan_of(gated(x, Gated(), granularity=granularity, **options), x, tmp_path))


@pytest.mark.parametrize("groups", [2, 4, 16])
def test_groups_of_any_size(groups: int, isa: str, tmp_path: Path) -> None:
    """Of 8 channels, of 4, of 2 and 1: a decision of one channel has its group's scale, as all have."""
    torch.manual_seed(13)
    x = torch.randn(3, 3, 13, 12)
    model = gated(x, Gated(channels=8), granularity="group", groups=groups)
    for layer in gated_layers(model).values():
        layer.gate.score_var.uniform_(0.02, 0.1)
    agree(plan_of(model, x, tmp_path))


@pytest.mark.parametrize("act", [nn.Tanh, nn.Hardswish, nn.SiLU, nn.ReLU6])
def test_activations_behind_gates(act: type[nn.Module], isa: str, tmp_path: Path) -> None:
    torch.manual_seed(4)
    x = torch.randn(2, 3, 13, 12)
    agree(plan_of(gated(x, Gated(act=act)), x, tmp_path))


def test_every_other_operator(isa: str, tmp_path: Path) -> None:
    torch.manual_seed(5)
    x = torch.randn(2, 3, 17, 19)
    agree(plan_of(settle(EveryOperator(), x), x, tmp_path))


@pytest.mark.parametrize("name", ["resnet20", "mobilenetv1-cifar", "vgg16-cifar", "alexnet-cifar"])
def test_dense_models(name: str, tmp_path: Path) -> None:
    torch.manual_seed(6)
    x = torch.randn(2, 3, 32, 32)
    model = settle(models.create(name, num_classes=10), x)
    output = torch.from_numpy(hg.Engine(plan_of(model, x, tmp_path), threads=2)(x))
    with torch.no_grad():
        expected = model(x)
    assert (output - expected).abs().max() <= FLOAT32 * expected.abs().max()


TORCHVISION = ["resnet18", "resnet34", "resnet50", "vgg16_bn", "mobilenet_v2", "alexnet"]


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvisions_networks(name: str, tmp_path: Path) -> None:
    torch.manual_seed(6)
    x = torch.randn(2, 3, 64, 64)
    model = settle(torchvision.models.get_model(name, weights=None, num_classes=10), x)
    output = torch.from_numpy(hg.Engine(plan_of(model, x, tmp_path), threads=2)(x))
    with torch.no_grad():
        expected = model(x)
    assert (output - expected).abs().max() <= FLOAT32 * expected.abs().max()


@pytest.mark.parametrize("path", ["sparse", "masked"])
@pytest.mark.parametrize("granularity", ["activation", "group", "channel"])
def test_with_every_gate_open_it_is_the_dense_network(granularity: str, path: str, isa: str, tmp_path: Path) -> None:
    torch.manual_seed(9)
    x = torch.randn(3, 3, 13, 12)
    model = gated(x, Gated(), granularity=granularity)
    engine = hg.Engine(plan_of(model, x, tmp_path), paths=path)
    engine.shift_thresholds(-1e6)
    output = torch.from_numpy(engine(x))
    assert {layer.density for layer in engine.stats() if layer.kind == "gated_conv"} == {1.0}
    with torch.no_grad(), hg.force_gates(model, "open"):
        expected = model(x)
        dense = torch.from_numpy(hg.Engine(plan_of(model, x, tmp_path))(x))
    for other in (expected, dense):
        assert (output - other).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("granularity", ["activation", "group", "channel"])
def test_counts_are_those_of_count(granularity: str, tmp_path: Path) -> None:
    torch.manual_seed(10)
    x = torch.randn(3, 3, 13, 12)
    model = gated(x, Gated(), granularity=granularity)
    engine, images = agree(plan_of(model, x, tmp_path))
    executed = {layer.name: (layer.dense_macs, layer.executed_macs) for layer in engine.stats()}
    for layer in hg.count(model, [images]).by_layer():
        assert executed[layer.name] == (2 * layer.dense_macs, 2 * layer.executed_macs), layer.name  # of two images


@pytest.mark.parametrize("shift", [0.5, -0.5, 9.0])
def test_the_dial(shift: float, tmp_path: Path) -> None:
    torch.manual_seed(7)
    x = torch.randn(3, 3, 13, 12)
    path = plan_of(gated(x, Gated()), x, tmp_path)
    engine, images = agree(path, shift=shift)
    engine.shift_thresholds(-shift)
    assert np.array_equal(engine(images.numpy()), hg.Engine(path)(images.numpy()))
    with pytest.raises(ConfigError, match="offset must be a number, got 'a'"):
        engine.shift_thresholds("a")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="offset must be finite, got nan"):
        engine.shift_thresholds(float("nan"))
    engine.shift_thresholds(3e38)
    with pytest.raises(ConfigError, match="sum of all offsets finite"):
        engine.shift_thresholds(3e38)


@pytest.mark.parametrize("granularity", ["activation", "group", "channel"])
def test_results_do_not_depend_on_batch_or_threads(granularity: str, isa: str, tmp_path: Path) -> None:
    torch.manual_seed(8)
    x = torch.randn(37, 3, 13, 12)
    path = plan_of(gated(x, Gated(), granularity=granularity), x, tmp_path)
    engine = hg.Engine(path, threads=1)
    expected = engine(x.numpy())
    assert np.isfinite(expected).all()
    for threads in (1, 2, 3):
        engine = hg.Engine(path, threads=threads)
        for first, last in [(0, 1), (5, 6), (0, 2), (3, 36), (36, 37), (0, 37)]:
            assert np.array_equal(engine(x[first:last].numpy()), expected[first:last])


@pytest.mark.parametrize(
    ("granularity", "bound"),
    [("activation", 0.0), ("activation", 0.3), ("group", 0.0), ("group", 0.3), ("channel", 0.0)],
)
def test_small_maps_on_several_threads(granularity: str, bound: float, tmp_path: Path) -> None:
    torch.manual_seed(11)
    x = torch.randn(3, 3, 6, 6)
    path = plan_of(gated(x, Gated(channels=64), granularity=granularity, channel_bound=bound), x, tmp_path)
    agree(path)
    expected = hg.Engine(path, threads=1)(x.numpy())
    for threads in (2, 3, 4):
        engine = hg.Engine(path, threads=threads)
        for image in range(3):
            assert np.array_equal(engine(x[image : image + 1].numpy()), expected[image : image + 1])


def test_a_plan_may_change_on_disk(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 13, 12)
    path = plan_of(gated(x, Gated()), x, tmp_path)
    engine = hg.Engine(path, threads=1)
    expected = engine(x.numpy())
    with path.open("r+b") as file:
        file.truncate(0)
    assert np.array_equal(engine(x.numpy()), expected)


def test_calls_from_several_threads(tmp_path: Path) -> None:
    torch.manual_seed(9)
    x = torch.randn(8, 3, 13, 12)
    engine = hg.Engine(plan_of(gated(x, Gated()), x, tmp_path), threads=2)
    expected = engine(x.numpy())
    wrong: list[int] = []

    def work(image: int) -> None:
        for _ in range(20):
            if not np.array_equal(engine(x[image : image + 1].numpy()), expected[image : image + 1]):
                wrong.append(image)

    workers = [threading.Thread(target=work, args=(image,)) for image in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong
    assert sum(layer.images for layer in engine.stats()[:1]) == 8 + 8 * 20
    engine.reset_stats()
    assert engine.stats()[0].images == 0


def test_inputs(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 13, 12)
    engine = hg.Engine(plan_of(settle(Gated(), x), x, tmp_path), threads=1)
    assert engine.input_shape == (3, 13, 12)
    assert engine(x).shape == (2, *engine.output_shape)
    assert engine(np.zeros((0, 3, 13, 12), np.float32)).shape == (0, *engine.output_shape)
    with pytest.raises(ShapeError, match=r"images must have shape \(n, 3, 13, 12\), got \(2, 3, 12, 13\)"):
        engine(x.transpose(2, 3).contiguous())
    with pytest.raises(ShapeError, match="images must be contiguous"):
        engine(x.to(memory_format=torch.channels_last))
    with pytest.raises(DtypeError, match="images must be float32, got float64"):
        engine(x.double())
    with pytest.raises(DtypeError, match="must be a numpy array or speak DLPack, got list"):
        engine([1.0])
    with pytest.raises(DtypeError, match="readable in place on the CPU"):
        engine(x.clone().requires_grad_())


def test_bad_plans_and_options(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"nothing\.hgplan"):
        hg.Engine(tmp_path / "nothing.hgplan")
    x = torch.randn(1, 3, 13, 12)
    path = plan_of(settle(Gated(), x), x, tmp_path)
    with pytest.raises(ConfigError, match=r"threads must be in \[1, 256\], got 0"):
        hg.Engine(path, threads=0)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(PlanError, match=r"model\.hgplan"):
        hg.Engine(path)


def limited_memory(program: str, path: Path) -> None:
    """Run a program that may limit its memory: `limit(n)` leaves n bytes more than are in use; `path` is the plan's."""
    prelude = """
import os, resource, sys
import numpy as np
import headgate as hg
def limit(more):
    pages = int(open("/proc/self/statm").read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGESIZE") + more, resource.RLIM_INFINITY))
path = sys.argv[1]
hg.Engine(path)  # loads the extension module
"""
    done = subprocess.run([sys.executable, "-c", prelude + program, path], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


def test_short_memory(tmp_path: Path) -> None:
    x = torch.randn(1, 3, 64, 64)
    path = plan_of(settle(Gated(channels=64), x), x, tmp_path)
    limited_memory(
        """
engine = hg.Engine(path, threads=2)
images = np.zeros((64, 3, 64, 64), np.float32)
small = engine(images[:1])
limit(1 << 20)
try:
    engine(images)
except MemoryError as error:
    assert "not enough memory to run 64 images" in str(error), error
else:
    raise SystemExit("it ran")
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
assert np.array_equal(engine(images[:1]), small)
""",
        path,
    )
    limited_memory(
        """
resource.setrlimit(resource.RLIMIT_AS, (1 << 20, resource.RLIM_INFINITY))
try:
    hg.Engine(path)
except hg.HeadgateError as error:
    text = str(error)
except MemoryError as error:
    text = str(error)
assert "model.hgplan: " in text and "memory" in text, text
""",
        path,
    )


def test_the_engine_needs_no_torch(tmp_path: Path) -> None:
    x = torch.randn(1, 3, 13, 12)
    path = plan_of(settle(Gated(), x), x, tmp_path)
    program = (
        "import sys, numpy, headgate as hg; "
        f"hg.Engine({str(path)!r})(numpy.zeros((1, 3, 13, 12), numpy.float32)); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
