"""Listens to a running model: gated layers through their observers, dense layers and the rest through hooks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from headgate.counting.arithmetic import Work, work
from headgate.counting.layers import PER_IMAGE, LayerCounts, Uncounted
from headgate.errors import DataError, ModelError, ShapeError
from headgate.nn import GatedConv2d, Observation, gated_layers, observe
from headgate.nn.gated_conv import is_binary, padding_of
from headgate.workload import LayerShape

DENSE = (nn.Conv2d, nn.Linear)
OPAQUE = (nn.RNNBase,)  # one fused operator that torch's registry of FLOPs does not know


@dataclass(kw_only=True)
class _Layer:
    """One layer in one place of the network, while it is being recorded."""

    shape: LayerShape
    calls: int = 1
    overhead: tuple[int, int] = (0, 0)
    batches: int = 0
    chunks: list[Work] = field(default_factory=list)
    live_inputs: list[Tensor] = field(default_factory=list)


class Recorder:
    """Collects, batch by batch, the shapes of all layers and the work of the gated ones.

    Args:
        model: without wrappers.
    Raises: ModelError: it has no convolution.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.gated = gated_layers(model)
        inside_gates = {id(module) for layer in self.gated.values() for module in layer.modules()}
        self.dense = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, DENSE) and id(module) not in inside_gates
        }
        if not self.gated and not any(isinstance(module, nn.Conv2d) for module in self.dense.values()):
            raise ModelError(f"model must have convolutions to count, got {type(model).__name__} with none")
        self.layers: dict[str, _Layer] = {}
        self.uncounted: dict[tuple[str, str], float | None] = {}
        self.images = 0
        self._batches = 0
        self._batch = 0
        self._calls: Counter[str] = Counter()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hooks and observers are in place inside the block, and gone after it."""
        with ExitStack() as stack:
            for name, module in self.dense.items():
                hook = module.register_forward_hook(_DenseHook(self, name), with_kwargs=True)
                stack.callback(hook.remove)
            if self.gated:
                stack.enter_context(observe(self.model, self._record_gated))
            yield

    @contextmanager
    def batch(self, images: int) -> Iterator[None]:
        """One batch runs inside the block; the first is also searched for arithmetic that no layer accounts for."""
        self._batch = images
        self._calls.clear()
        with ExitStack() as stack:
            if not self._batches:
                stack.enter_context(_audit(self.model, self._counted_modules(), self._record_uncounted))
            yield
        self._batches += 1
        self.images += images
        skipped = [name for name, layer in self.layers.items() if layer.batches != self._batches]
        if skipped:
            raise ModelError(
                "every image must run the same layers, got batches with and without "
                f"{', '.join(map(repr, skipped[:3]))}; count such a network path by path"
            )

    def _counted_modules(self) -> list[nn.Module]:
        return [*self.gated.values(), *self.dense.values()]

    def uncalled(self) -> tuple[str, ...]:
        """Layers that no image ran through, such as auxiliary heads."""
        ran = {name.split("#")[0] for name in self.layers}
        return tuple(name for name in (*self.gated, *self.dense) if name not in ran)

    def counts(self) -> list[LayerCounts]:
        """What every layer executed, in the order of execution."""
        result = []
        for layer in self.layers.values():
            if layer.shape.gated:
                columns = [torch.cat(parts).cpu().numpy() for parts in zip(*layer.chunks, strict=True)]
            else:
                channels = (0, 0, layer.shape.c_in, layer.shape.c_out)
                columns = [np.full(self.images, value, np.int64) for value in channels]
            additions, multiplications = layer.overhead
            result.append(
                LayerCounts(
                    shape=layer.shape,
                    calls=layer.calls,
                    additions=additions,
                    multiplications=multiplications,
                    **dict(zip(PER_IMAGE, columns, strict=True)),
                )
            )
        return result

    # ------------------------------------------------------------- recording

    def _key(self, name: str) -> str:
        self._calls[name] += 1
        return name if self._calls[name] == 1 else f"{name}#{self._calls[name]}"

    def _enter(self, shape: LayerShape, calls: int) -> _Layer:
        layer = self.layers.get(shape.name)
        if layer is None:
            if self._batches:
                raise ModelError(f"every image must run the same layers, got {shape.name!r} in some batches only")
            layer = self.layers[shape.name] = _Layer(shape=shape, calls=calls)
        elif (layer.shape, layer.calls) != (shape, calls):
            raise DataError(
                f"images of one count must have one size, got input maps of {layer.shape.in_size} and {shape.in_size} "
                f"in {shape.name!r}; count each size by itself"
            )
        layer.batches += 1
        return layer

    def record_dense(self, name: str, module: nn.Module, x: Tensor, output: Tensor) -> None:
        """A dense layer ran."""
        if isinstance(module, nn.Conv2d):
            runs = len(x) if x.dim() == 4 else 1
            shape = _conv_shape(self._key(name), module, x, output)
        else:
            assert isinstance(module, nn.Linear)
            rows, batched = x.numel() // module.in_features, x.dim() > 1 and len(x) % self._batch == 0
            runs = len(x) if batched else rows
            positions = (rows // runs, 1) if rows else (1, 1)
            shape = LayerShape(
                name=self._key(name),
                c_in=module.in_features,
                c_out=module.out_features,
                kernel=(1, 1),
                in_size=positions,
                out_size=positions,
            )
        if runs % self._batch or not runs:
            raise ModelError(
                f"a layer must run equally often for every image, got {runs} runs of {name!r} for {self._batch} "
                "images; count one image at a time"
            )
        self._enter(shape, runs // self._batch)

    def _record_gated(self, name: str, gated: GatedConv2d, observation: Observation) -> None:
        if len(observation.open_counts) != self._batch:
            raise ModelError(
                f"a gated layer must run on one map per image at a time, got {len(observation.open_counts)} maps in "
                f"{name!r} for {self._batch} images; leave it dense, or call it once for each map"
            )
        shape = gated.layer_shape(self._key(name), observation.in_size, observation.out_size)
        layer = self._enter(shape, 1)
        overhead = gated.gate.overhead(
            shape.c_in, shape.c_out, shape.in_size[0] * shape.in_size[1], shape.out_size[0] * shape.out_size[1]
        )
        layer.overhead = (overhead.additions, overhead.multiplications)
        live = None if observation.live_inputs is None else observation.live_inputs.to(torch.int64)
        if live is not None:
            layer.live_inputs.append(live)
        layer.chunks.append(work(shape, observation.open_counts.round().to(torch.int64), live))

    def _record_uncounted(self, name: str, operation: str, macs: float | None) -> None:
        key = (name, operation)
        if macs is None:
            self.uncounted[key] = None
        else:
            self.uncounted[key] = (self.uncounted.get(key) or 0.0) + macs / self._batch

    def uncounted_operations(self) -> tuple[Uncounted, ...]:
        """Arithmetic that no layer accounts for, in the order of execution."""
        return tuple(Uncounted(name, operation, macs) for (name, operation), macs in self.uncounted.items())


class _DenseHook:
    def __init__(self, recorder: Recorder, name: str) -> None:
        self.recorder, self.name = recorder, name

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        x = args[0] if args else kwargs.get("input")
        if not isinstance(x, Tensor) or not isinstance(output, Tensor):
            raise ModelError(
                f"a convolution or linear layer must map a tensor to a tensor, got other types in {self.name!r}"
            )
        self.recorder.record_dense(self.name, module, x, output)


def _conv_shape(name: str, conv: nn.Conv2d, x: Tensor, output: Tensor) -> LayerShape:
    def shape(padding: tuple[int, int]) -> LayerShape:
        return LayerShape(
            name=name,
            c_in=conv.in_channels,
            c_out=conv.out_channels,
            kernel=(conv.kernel_size[0], conv.kernel_size[1]),
            stride=(conv.stride[0], conv.stride[1]),
            padding=padding,
            dilation=(conv.dilation[0], conv.dilation[1]),
            conv_groups=conv.groups,
            in_size=(x.shape[-2], x.shape[-1]),
            out_size=(output.shape[-2], output.shape[-1]),
            binary=is_binary(conv),
        )

    try:
        return shape(padding_of(conv))
    except ShapeError:  # a subclass that pads by itself: state the padding that its output implies
        padding = []
        for axis in range(2):
            reach = conv.dilation[axis] * (conv.kernel_size[axis] - 1) + 1
            covered = (output.shape[axis - 2] - 1) * conv.stride[axis] + reach
            padding.append(max(0, (covered - x.shape[axis - 2] + 1) // 2))
        return shape((padding[0], padding[1]))


# ------------------------------------------------------------------- the audit


@contextmanager
def _audit(
    model: nn.Module, counted: list[nn.Module], report: Callable[[str, str, float | None], None]
) -> Iterator[None]:
    """Report (module name, operator, MACs) of every matrix product or convolution outside the `counted` modules."""
    where: list[str] = []
    depth = 0
    known = {id(module) for module in counted}

    def found(operation: str, macs: float | None) -> None:
        report(where[-1] if where else "", operation, macs)

    operators: AbstractContextManager[object] = _Operators(found)

    def enter(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, _args: Any) -> None:
            nonlocal depth
            where.append(name)
            if id(module) in known:
                if depth == 0:  # inside it runs what would run without an audit, fused operators too
                    operators.__exit__(None, None, None)
                depth += 1

        return hook

    def leave(module: nn.Module, _args: Any, _output: Any) -> None:
        nonlocal depth
        if id(module) in known:
            depth -= 1
            if depth == 0:
                operators.__enter__()
        elif isinstance(module, OPAQUE) and depth == 0:
            found(type(module).__name__, None)
        where.pop()

    with ExitStack() as stack:
        for name, module in model.named_modules():
            stack.callback(module.register_forward_pre_hook(enter(name)).remove)
            stack.callback(module.register_forward_hook(leave, always_call=True).remove)
        stack.enter_context(operators)
        yield


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Sees every operator that reaches torch's dispatcher, and tells of those that torch counts FLOPs for."""

    def __init__(self, found: Callable[[str, float], None]) -> None:
        from torch.utils.flop_counter import flop_registry  # loads Triton, which `import headgate` must not

        super().__init__()  # type: ignore[no-untyped-call]
        self.found = found
        self.flops = flop_registry

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled while it listens, and skipping would load the compiler: seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        flops = self.flops.get(func._overloadpacket)
        if flops is None:
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        output = func(*args, **kwargs)
        if flops is not None:
            self.found(str(func._overloadpacket), flops(*args, **kwargs, out_val=output) / 2)
        return output
