"""Gated models under what users run models with: compile, export, copies, checkpoints, DDP, layouts, autocast."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torchvision
from torch import Tensor, nn

from headgate.convert import gate_, gated_structure
from headgate.fusion import fuse, set_sync_
from headgate.nn import GateConfig, gated_layers, observe, threshold_loss

GRANULARITIES = ("activation", "group", "channel", "l1norm", "fc")
TOLERANCE = 1e-9  # float64; the same decisions, other orders of summation


class Small(nn.Module):
    """Two residual blocks of torchvision behind a stem."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        block = torchvision.models.resnet.BasicBlock
        down = nn.Sequential(nn.Conv2d(channels, 2 * channels, 1, 2, bias=False), nn.BatchNorm2d(2 * channels))
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU())
        self.blocks = nn.Sequential(block(channels, channels), block(channels, 2 * channels, 2, down))
        self.fc = nn.Linear(2 * channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


def gated(granularity: Any = "activation", dtype: torch.dtype = torch.float64, **options: Any) -> Small:
    model = Small()
    gate_(model, GateConfig(groups=4, granularity=granularity, **options))
    model = model.to(dtype)
    with torch.no_grad():  # statistics as after some training
        for _ in range(5):
            model(image(8, dtype=dtype))
    return model.eval()


def image(n: int = 2, dtype: torch.dtype = torch.float64, size: int = 10) -> Tensor:
    return torch.randn(n, 3, size, size, dtype=dtype)


def same_gradients(model: nn.Module, twin: nn.Module) -> None:
    for (name, a), b in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert a.grad is not None, name
        assert b.grad is not None
        assert (a.grad - b.grad).abs().max() <= TOLERANCE * max(1.0, b.grad.abs().max().item()), name


def loss(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().sum() + threshold_loss(model, 1.0)


@pytest.fixture(autouse=True)
def _forget_compiled_code() -> Iterator[None]:
    yield
    torch.compiler.reset()


def tiny(granularity: Any) -> nn.Module:
    """One gated layer, because compilers take their time."""
    layers = (nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
    model = nn.Sequential(*layers)
    gate_(model, GateConfig(groups=4, granularity=granularity))
    return model.double()


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_compiled_training_has_the_same_gradients(granularity: Any) -> None:
    model = tiny(granularity).train()
    twin, x = copy.deepcopy(model), image()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        output, expected = compiled(x), twin(x)
        assert (output - expected).abs().max() < TOLERANCE
        output.square().sum().backward()
        expected.square().sum().backward()
    same_gradients(model, twin)


def test_compiled_fused_training_has_the_same_gradients() -> None:
    model = tiny("activation").train()
    twin, x = copy.deepcopy(model), image()
    torch.compile(fuse(model), backend="aot_eager", fullgraph=True)(x).square().sum().backward()
    twin(x).square().sum().backward()
    same_gradients(model, twin)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])  # the second is what users get
def test_compiles_for_inference_and_observers_are_silent(backend: str) -> None:
    model, x, seen = tiny("activation").eval(), image(), list[str]()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    with torch.no_grad(), observe(model, lambda name, *_: seen.append(name)):
        output = compiled(x)
        assert seen == []
        assert (output - model(x)).abs().max() < TOLERANCE


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_exports(granularity: Any) -> None:
    model = gated(granularity)
    x = image()
    exported = torch.export.export(model, (x,))
    assert (exported.module()(x) - model(x)).abs().max() < TOLERANCE
    another = image()
    assert (exported.module()(another) - model(another)).abs().max() < TOLERANCE


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_copies_and_pickles(granularity: Any) -> None:
    model, x = gated(granularity), image()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), model(x))
        assert gated_structure(twin) == gated_structure(model)
        twin.blocks[0].conv1.gate.threshold.data += 1
        assert not torch.equal(twin.blocks[0].conv1.gate.threshold, model.blocks[0].conv1.gate.threshold)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("norm", ["separate", "shared"])
def test_state_round_trips(granularity: Any, norm: str, tmp_path: Path) -> None:
    model = gated(granularity, norm=norm)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    again = gated(granularity, norm=norm)
    x = image()
    assert not torch.equal(again(x), model(x))
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(again(x), model(x))


def test_names_are_the_dense_models_where_it_has_them() -> None:
    dense, model = Small().state_dict(), gated().state_dict()
    absorbed = {name for name in dense if ".bn" in name or "downsample.1" in name}
    assert dense.keys() - model.keys() == absorbed
    added = {name.split(".", 3)[-1] for name in model.keys() - dense.keys() if "conv1" in name}
    sums = ("weight", "bias", "running_mean", "running_var")
    norms = {f"{norm}_norm.{value}" for norm in ("final", "partial") for value in sums}
    assert added == {"gate.threshold", "gate.offset", *norms}


def test_channels_last_gives_the_same() -> None:
    model, x = gated(), image()
    expected = model(x)
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    assert (last(x.contiguous(memory_format=torch.channels_last)) - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("fused", [False, True])
def test_trains_under_bfloat16_autocast(granularity: Any, fused: bool) -> None:
    model = gated(granularity, torch.float32).train()
    run = fuse(model) if fused else model
    with torch.autocast("cpu", torch.bfloat16):
        output = run(image(4, torch.float32))
    assert output.dtype == torch.bfloat16
    (output.float().square().sum() + threshold_loss(model, 1.0)).backward()
    for name, layer in gated_layers(model).items():
        assert layer.gate.threshold.grad is not None, name
        assert torch.isfinite(layer.gate.threshold.grad).all(), name
        assert layer.gate.threshold.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_model_runs(dtype: torch.dtype) -> None:
    model = gated("activation", torch.float32).to(dtype)
    output = model(image(2, dtype))
    assert output.dtype == dtype
    assert torch.isfinite(output).all()


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("fused", [False, True])
def test_trains_under_ddp(one_process: None, fused: bool) -> None:
    model = gated().train()
    twin, x = copy.deepcopy(model), image()
    set_sync_(model)
    wrapped = nn.parallel.DistributedDataParallel(fuse(model) if fused else model)
    loss(wrapped, x).backward()
    loss(twin, x).backward()
    same_gradients(model, twin)
    with pytest.raises(Exception, match=r"inside DistributedDataParallel; use model\.module"):
        fuse(wrapped)


def _half_batch(rank: int, folder: str, states: dict[str, Any], x: Tensor) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    for granularity, state in states.items():
        model = Small()
        gate_(model, GateConfig(groups=4, granularity=granularity))  # type: ignore[arg-type]
        model = model.double().train()
        model.load_state_dict(state)
        run = fuse(model)
        set_sync_(run)
        output = run(x.chunk(2)[rank])
        output.square().sum().backward()
        for parameter in model.parameters():
            dist.all_reduce(parameter.grad)
        gradients = {name: p.grad for name, p in model.named_parameters()}
        torch.save((output, model.state_dict(), gradients), f"{folder}/{granularity}{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_with_synchronised_statistics_equal_one(tmp_path: Path) -> None:
    models = {g: gated(g).train() for g in GRANULARITIES}
    x = image(8)
    states = {g: copy.deepcopy(model.state_dict()) for g, model in models.items()}
    torch.multiprocessing.spawn(_half_batch, (str(tmp_path), states, x), nprocs=2)
    for granularity, model in models.items():
        output = model(x)
        output.square().sum().backward()
        saved = [torch.load(tmp_path / f"{granularity}{rank}.pt") for rank in (0, 1)]
        assert (torch.cat([s[0] for s in saved]) - output).abs().max() < TOLERANCE
        for name, value in model.state_dict().items():
            for _, state, _ in saved:
                assert (state[name].double() - value.double()).abs().max() < TOLERANCE, (granularity, name)
        for name, parameter in model.named_parameters():
            bound = TOLERANCE * max(1.0, parameter.grad.abs().max().item())  # type: ignore[union-attr]
            assert (saved[0][2][name] - parameter.grad).abs().max() < bound, (granularity, name)
