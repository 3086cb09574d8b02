"""When the native operators serve a call and when the reference does; instruction sets, threads, forks."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import warnings

import pytest
import torch
from torch import Tensor, nn

from headgate.errors import DtypeError, ShapeError
from headgate.ops import native
from headgate.ops.batch_norm import BatchNorm
from headgate.ops.gated_norm import gated_norm
from headgate.ops.norm_act import norm_act

needs_native = pytest.mark.skipif(not native.available(), reason="headgate._native is not built, or HEADGATE_NATIVE=0")


def norm(channels: int = 16, *, training: bool = True, **changes: object) -> BatchNorm:
    tensors = (
        torch.ones(channels, requires_grad=True),
        torch.zeros(channels),
        torch.zeros(channels),
        torch.ones(channels),
    )
    return BatchNorm(*tensors, training)._replace(**changes)


def served(output: Tensor) -> bool:
    return type(output.grad_fn).__name__ in ("_NormActBackward", "_GatedNormBackward")


@needs_native
def test_serves_float32_and_bfloat16_on_the_cpu() -> None:
    x = torch.randn(2, 16, 4, 4)
    assert served(norm_act(x, norm(), None, relu=True))
    assert served(norm_act(x.bfloat16(), norm(), x.bfloat16(), relu=True))
    assert served(gated_norm(x, x, norm(), norm(), torch.zeros(16), None, None, slope=2.0, relu=True)[0])


@pytest.mark.parametrize(
    ("x", "residual", "changes"),
    [
        (torch.randn(2, 16, 4, 4).double(), None, {}),
        (torch.randn(2, 16, 4, 4).half(), None, {}),
        (torch.randn(2, 16, 4, 4).bfloat16(), torch.randn(2, 16, 4, 4), {}),
        (torch.randn(2, 16, 4, 4), None, {"weight": None, "bias": torch.zeros(16, requires_grad=True)}),
        (torch.randn(2, 16, 4, 4), None, {"sync": True}),
        (torch.randn(2, 16, 4, 4), None, {"running_mean": torch.zeros(16).double()}),
        (torch.randn(0, 16, 4, 4), None, {"training": False}),
    ],
    ids=["float64", "float16", "mixed", "no weight", "sync", "double statistics", "empty"],
)
def test_the_reference_serves_the_rest(x: Tensor, residual: Tensor | None, changes: dict[str, object]) -> None:
    output = norm_act(x, norm(**changes), residual, relu=True)
    assert output.requires_grad
    assert not served(output)


def test_the_reference_serves_compilers_and_modes() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx

    x = torch.randn(2, 16, 4, 4)
    with FakeTensorMode() as mode:
        assert norm_act(mode.from_tensor(x), norm(), None, relu=True).shape == x.shape
    fixed = norm(training=False)
    graph = make_fx(lambda x: norm_act(x, fixed, None, relu=True))(x)
    assert any("relu" in str(node.target) for node in graph.graph.nodes)
    torch.testing.assert_close(graph(x), norm_act(x, fixed, None, relu=True))
    per_image = torch.func.vmap(lambda x: norm_act(x[None], fixed, None, relu=True)[0])(x)
    torch.testing.assert_close(per_image, norm_act(x, fixed, None, relu=True))

    class Layer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return norm_act(x, norm(training=False), None, relu=True)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about itself
        program = torch.export.export(Layer(), (x,))
    torch.testing.assert_close(program.module()(x), norm_act(x, norm(training=False), None, relu=True))


def test_shapes_and_dtypes_are_checked(unchecked_types: None) -> None:
    x = torch.randn(2, 16, 4, 4)
    with pytest.raises(ShapeError, match="8 channels of its norm, got 16"):
        norm_act(x, norm(8), None, relu=True)
    with pytest.raises(ShapeError, match="residual must have x's shape"):
        norm_act(x, norm(), x[:1], relu=True)

    def gated(x: Tensor, p: Tensor | None, threshold: int, residual: Tensor | None = None) -> None:
        gated_norm(x, p, norm(), norm(), torch.zeros(threshold), None, residual, slope=2.0, relu=True)

    with pytest.raises(ShapeError, match="must divide the 16 channels, got 3"):
        gated(x, x, 3)
    with pytest.raises(ShapeError, match="without score_var, threshold must have 16 values, got 4"):
        gated(x, x, 4)
    with pytest.raises(ShapeError, match="16 channels of its norm, got 8"):
        gated(x, None, 16)
    with pytest.raises(ShapeError, match="partial_sum must have final_sum's shape"):
        gated(x, x[..., :2], 16)
    with pytest.raises(ShapeError, match="residual must have 16 channels"):
        gated(x, x, 16, x[:, :8])
    with pytest.raises(DtypeError, match="floating-point"):
        gated(x.int(), x.int(), 16)


@needs_native
def test_norms_of_the_wrong_length_never_reach_native_memory(unchecked_types: None) -> None:
    x = torch.randn(2, 16, 4, 4)
    assert not native.serves((x,), 16, (norm(running_var=torch.ones(8)),))
    assert not native.serves((x,), 16, (norm(),), (torch.zeros(4), torch.ones(3)))
    assert not native.serves((x[0],), 16, (norm(),))
    assert native.serves((x,), 16, (norm(),), (torch.zeros(4), None))


@needs_native
def test_raw_calls_check_what_would_corrupt_memory() -> None:
    extension = native.module()
    assert extension is not None
    nothing = (0, 0, 0, 0, False, 0.1, 1e-5, 0, 0)
    with pytest.raises(ValueError, match="input is null"):
        extension.norm_act_forward((False, 1, 1, True), (0, 0), (0, 0), (0, 0), nothing, 1)
    with pytest.raises(ValueError, match="the input is empty"):
        extension.norm_act_forward((False, 0, 1, True), (0, 0), (0, 0), (0, 0), nothing, 1)
    with pytest.raises(ValueError, match="pixels overlap"):
        extension.norm_act_forward((False, 1, 4, True), (64, 3), (0, 0), (0, 0), nothing, 1)


def test_operators_under_autocast_and_in_copies() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 32, 3)
            self.bn = nn.ModuleList(nn.BatchNorm2d(16) for _ in range(2))
            self.threshold = nn.Parameter(torch.zeros(16))

        def forward(self, x: Tensor) -> Tensor:
            norms = (BatchNorm(bn.weight, bn.bias, bn.running_mean, bn.running_var, bn.training) for bn in self.bn)
            return gated_norm(self.conv(x), None, *norms, self.threshold, None, None, slope=2.0, relu=True)[0]

    x = torch.randn(2, 3, 8, 8)
    layer = Layer()
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(x)
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
    assert torch.equal(copy.deepcopy(layer).eval()(x), layer.eval()(x))


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@needs_native
def test_instruction_sets_that_are_unknown_or_absent_are_errors() -> None:
    """What the build lacks and what the CPU lacks are told apart."""
    extension = native.module()
    assert extension is not None
    x86, arm = ["portable", "avx2", "avx512"], ["portable", "neon"]
    assert extension.choose_isa("", x86, x86) == "avx512"
    assert extension.choose_isa("", x86, x86[:2]) == "avx2"
    assert extension.choose_isa("", arm, arm) == "neon"
    assert extension.choose_isa("", x86[:1], x86) == "portable"
    assert extension.choose_isa("avx2", x86, x86) == "avx2"
    assert extension.choose_isa("portable", arm, arm) == "portable"
    with pytest.raises(extension.BackendError, match=r"HEADGATE_ISA=avx512: this build .* lacks it; .* on x86-64$"):
        extension.choose_isa("avx512", arm, arm)
    with pytest.raises(extension.BackendError, match=r"HEADGATE_ISA=neon: this build .* lacks it; .* on AArch64$"):
        extension.choose_isa("neon", x86, x86)
    with pytest.raises(OSError, match=r"HEADGATE_ISA=avx512: this CPU lacks it \(it needs AVX-512 F.*set it to avx2$"):
        extension.choose_isa("avx512", x86, x86[:2])
    with pytest.raises(OSError, match=r"HEADGATE_ISA=neon: this CPU lacks it \(it needs Advanced SIMD\); .*portable$"):
        extension.choose_isa("neon", arm, arm[:1])
    with pytest.raises(ValueError, match="must be portable, neon, avx2 or avx512, got sse9"):
        extension.choose_isa("sse9", x86, x86)


@needs_native
def test_a_wrong_environment_is_reported_at_the_first_use() -> None:
    code = """if True:
        from headgate.errors import ConfigError
        from headgate.ops import native
        try:
            native.available()
        except ConfigError as error:
            print(error)"""
    ran = python(code, HEADGATE_ISA="sse9")
    assert ran.stdout == "HEADGATE_ISA must be portable, neon, avx2 or avx512, got sse9\n", ran.stderr


def test_the_environment_turns_the_native_operators_off_and_chooses_among_them() -> None:
    code = (
        "from headgate.ops import native; print(native.available(), native.module() and native.module().active_isa())"
    )
    assert python(code, HEADGATE_NATIVE="0").stdout == "False None\n"
    if native.available():
        assert python(code, HEADGATE_ISA="portable").stdout == "True portable\n"


@needs_native
def test_the_pool_survives_a_fork() -> None:
    code = """if True:
        import os, torch
        from headgate.ops.batch_norm import BatchNorm
        from headgate.ops.norm_act import norm_act
        torch.set_num_threads(1)  # torch's own threads do not survive a fork
        torch.get_num_threads = lambda: 3
        x = torch.randn(8, 16, 32, 32).contiguous(memory_format=torch.channels_last)
        norm = BatchNorm(torch.ones(16), torch.zeros(16), torch.zeros(16), torch.ones(16), False)
        before = norm_act(x, norm, None, relu=True)
        child = os.fork()
        if child == 0:
            os._exit(0 if torch.equal(norm_act(x, norm, None, relu=True), before) else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        print(torch.equal(norm_act(x, norm, None, relu=True), before))"""
    ran = python(code)
    assert ran.stdout == "0\nTrue\n", ran.stderr


@needs_native
@pytest.mark.parametrize("threads", [2], indirect=True)
def test_callers_on_several_threads_do_not_disturb_each_other(threads: int, generator: torch.Generator) -> None:
    from concurrent.futures import ThreadPoolExecutor

    xs = [torch.randn(8, 16, 24, 24, generator=generator) for _ in range(8)]

    def call(x: Tensor) -> Tensor:
        torch.set_num_threads(threads)  # a setting of each thread's own
        return norm_act(x, norm(), None, relu=True).detach()

    alone = [call(x) for x in xs]
    with ThreadPoolExecutor(4) as pool:
        assert all(map(torch.equal, pool.map(call, xs), alone))
