"""The pruning methods as training runs use them: one config names any of them, one set of hooks runs it.

method = make_method(config, model, batches, steps)     # before the optimiser is made
for step in range(steps):                               # of method.model
    method.before_step(step)
    with method.observing():
        loss = task_loss(method.model(images), labels)
    loss = loss + method.penalty()
    …
    method.after_step()
model = method.finish()                                 # what is evaluated and saved
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal, get_args

from torch import Tensor, nn

from headgate.baselines.decorrelation import Decorrelation, DecorrelationConfig, orthogonal_
from headgate.baselines.fbs import fbs_, observe_saliencies, saliency_loss, set_density_
from headgate.baselines.magnitude import MagnitudePruner, PruningSchedule
from headgate.baselines.perforation import perforate_
from headgate.baselines.perforation_masks import Batches, MaskKind, require_kind
from headgate.baselines.perforation_rates import choose_rates
from headgate.baselines.removal import remove
from headgate.baselines.ssl import GroupLasso, SSLConfig, ZeroMask
from headgate.baselines.torch_pruning import prune
from headgate.counting import count
from headgate.errors import ConfigError, ModelError
from headgate.nn.config import require_finite

__all__ = ["Method", "MethodName", "PruningConfig", "make_method"]

MethodName = Literal["perforation", "ssl", "decorrelation", "fbs", "magnitude", "torch-pruning"]
BISECTIONS: Final = 10  # halve an interval so often
PRUNINGS: Final = 100  # in which magnitude pruning reaches its end
DECORRELATION: Final = 0.1  # λ of the correlation's norm, of the order of 0.1 for each layer


@dataclass(frozen=True, kw_only=True)
class PruningConfig:
    """A pruning method, and how far it shall go.

    Attributes:
        method: "perforation"; "ssl": group lasso over filters and channels; "decorrelation": that and a penalty on
            correlation; "fbs"; "magnitude": single weights; "torch-pruning": filters of least norm, before training.
        mac_reduction: of the whole network, dense ÷ executed MACs, to end at. For "magnitude" it is the theoretical
            one, of weights that are not zero: the network runs no faster.
        weight: λ of the method's own loss; None: 1e-4 for "ssl" and "decorrelation", the paper's 1e-8 for "fbs".
        mask: of "perforation".
        greedy: choose a rate for each layer of "perforation"; otherwise all have the same.
        orthogonal: start "decorrelation" from orthogonal filters, as its authors do; not for a trained network.
        settled: share of the run after which what is pruned no longer changes; the rest is fine-tuning.
    Raises: ConfigError.
    """

    method: MethodName
    mac_reduction: float
    weight: float | None = None
    mask: MaskKind = "impact"
    greedy: bool = False
    orthogonal: bool = False
    settled: float = 0.5

    def __post_init__(self) -> None:
        if self.method not in get_args(MethodName):
            raise ConfigError(f"method must be one of {', '.join(get_args(MethodName))}, got {self.method!r}")
        require_kind(self.mask)
        require_finite("mac_reduction", self.mac_reduction)
        require_finite("settled", self.settled)
        if self.mac_reduction <= 1:
            raise ConfigError(f"mac_reduction must be > 1, got {self.mac_reduction}")
        if not 0 < self.settled <= 1:
            raise ConfigError(f"settled must be a share of the run in (0, 1], got {self.settled}")
        if self.weight is not None:
            require_finite("weight", self.weight)
            if self.weight < 0:
                raise ConfigError(f"weight must be ≥ 0, got {self.weight}")

    def weight_or(self, default: float) -> float:
        """λ."""
        return default if self.weight is None else self.weight


class Method:
    """What a method does in a training run; this one nothing.

    Attributes:
        model: what is to be trained.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def resume(self, step: int) -> None:
        """Go on after so many steps; `model` has been loaded with that state."""

    def before_step(self, step: int) -> None:
        """Before the forward pass of a training step, counted from 0."""

    def observing(self) -> AbstractContextManager[None]:
        """Around the forward pass of a training step."""
        return nullcontext()

    def penalty(self) -> Tensor | None:
        """What is added to the loss of the last forward pass, a scalar; None: nothing."""
        return None

    def after_step(self) -> None:
        """After the optimiser has moved the weights."""

    def finish(self) -> nn.Module:
        """The network that the trained one comes to."""
        return self.model


class _Pruning(Method):
    """A method that prunes. For its arguments see `make_method`.

    Attributes:
        example: one image.
        settles: the step from which on what is pruned no longer changes.
    """

    def __init__(self, config: PruningConfig, model: nn.Module, batches: Batches, steps: int) -> None:
        super().__init__(model)
        self.config = config
        self.example = batches[0][0][:1]
        self.settles = max(1, round(config.settled * steps))


class _Perforation(_Pruning):
    """Perforates and fine-tunes. Masks and rates are chosen once, on the network that training starts from."""

    def __init__(self, config: PruningConfig, model: nn.Module, batches: Batches, steps: int) -> None:
        super().__init__(config, model, batches, steps)
        first = next(name for name, module in model.named_modules() if isinstance(module, nn.Conv2d))
        rates: float | Mapping[str, float]
        if config.greedy:
            rates = choose_rates(model, batches, mac_reduction=config.mac_reduction, mask=config.mask, exclude=(first,))
        else:
            rates = _common_rate(model, self.example, config.mac_reduction, first)
        perforate_(model, rates, self.example, mask=config.mask, batches=batches, exclude=(first,))


def _common_rate(model: nn.Module, example: Tensor, mac_reduction: float, first: str) -> float:
    """The rate at which the whole network reaches a reduction, though its first layer and the linear ones stay."""
    layers, modules = count(model, example).layers, dict(model.named_modules())
    total = sum(layer.dense_macs for layer in layers)
    convs = (layer for layer in layers if isinstance(modules[layer.name.split("#")[0]], nn.Conv2d))
    changed = sum(layer.dense_macs for layer in convs if layer.name != first)
    rate = (total - total / mac_reduction) / changed
    if rate >= 1:
        raise ConfigError(f"mac_reduction must be below {total / (total - changed):.2f} here, got {mac_reduction}")
    return rate


class _GroupLasso(_Pruning):
    """Regularises; then zeroes the groups whose removal gives the reduction, and fine-tunes what is left."""

    def __init__(self, config: PruningConfig, model: nn.Module, batches: Batches, steps: int) -> None:
        super().__init__(config, model, batches, steps)
        self._lasso = self._bounded(model, 0.0)
        self._mask: ZeroMask | None = None

    def resume(self, step: int) -> None:
        if step > self.settles:
            self._mask = ZeroMask(self.model)

    def before_step(self, step: int) -> None:
        if step == self.settles:
            self._settle()

    def penalty(self) -> Tensor | None:
        return self._lasso.penalty() if self._mask is None else None

    def after_step(self) -> None:
        if self._mask is not None:
            self._mask.apply_()

    def finish(self) -> nn.Module:
        if self._mask is None:  # settled is 1
            self._settle()
        return remove(self.model, self.example).model

    def _settle(self) -> None:
        dense = count(self.model, self.example).network_dense_macs

        def reduction(bound: float) -> float:
            trial = copy.deepcopy(self.model).eval()
            self._bounded(trial, bound).zero_()
            return dense / count(remove(trial, self.example).model, self.example).network_dense_macs

        self._bounded(self.model, _least(reduction, self.config.mac_reduction)).zero_()
        self._mask = ZeroMask(self.model)

    def _bounded(self, model: nn.Module, bound: float) -> GroupLasso:
        weight = self.config.weight_or(1e-4)
        return GroupLasso(model, SSLConfig(filters=weight, channels=weight, bound=bound), self.example)


class _Decorrelation(_GroupLasso):
    """Group lasso with the penalty on correlation."""

    def __init__(self, config: PruningConfig, model: nn.Module, batches: Batches, steps: int) -> None:
        if config.orthogonal:
            orthogonal_(model)
        super().__init__(config, model, batches, steps)
        self._decorrelation = Decorrelation(model, DecorrelationConfig(weight=DECORRELATION))

    def penalty(self) -> Tensor | None:
        lasso = super().penalty()
        return None if lasso is None else lasso + self._decorrelation.penalty()


class _FBS(_Pruning):
    """Lowers the share of computed channels from all to what gives the reduction, and trains on."""

    def __init__(self, config: PruningConfig, model: nn.Module, batches: Batches, steps: int) -> None:
        super().__init__(config, model, batches, steps)
        fbs_(model, example_input=self.example)
        images = batches[0][0]

        def reduction(skipped: float) -> float:
            set_density_(model, 1 - skipped)
            return count(model, images).network_mac_reduction

        self._density = 1 - _least(reduction, config.mac_reduction)
        self._saliencies: Mapping[str, Tensor] = {}

    def before_step(self, step: int) -> None:
        set_density_(self.model, 1 - (1 - self._density) * min(1.0, step / self.settles))

    @contextmanager
    def observing(self) -> Iterator[None]:
        with observe_saliencies(self.model) as self._saliencies:
            yield

    def penalty(self) -> Tensor:
        return saliency_loss(self._saliencies, self.config.weight_or(1e-8))

    def finish(self) -> nn.Module:
        set_density_(self.model, self._density)
        return self.model


class _Magnitude(_Pruning):
    """Sets ever more of the smallest weights to zero."""

    def __init__(self, config: PruningConfig, model: nn.Module, batches: Batches, steps: int) -> None:
        super().__init__(config, model, batches, steps)
        schedule = PruningSchedule(
            final=1 - 1 / config.mac_reduction, end=self.settles, every=max(1, self.settles // PRUNINGS)
        )
        self._pruner = MagnitudePruner(model, schedule)
        self._pruner.step(0)  # its masks are part of the state that an interrupted run loads

    def before_step(self, step: int) -> None:
        self._pruner.step(step)

    def finish(self) -> nn.Module:
        self._pruner.finish_()
        return self.model


class _TorchPruning(_Pruning):
    """Removes the filters of least norm, and fine-tunes."""

    def __init__(self, config: PruningConfig, model: nn.Module, batches: Batches, steps: int) -> None:
        smaller = prune(model, batches[0][0][:1], mac_reduction=config.mac_reduction)
        super().__init__(config, smaller, batches, steps)


_METHODS: Final[Mapping[MethodName, type[_Pruning]]] = MappingProxyType(
    {
        "perforation": _Perforation,
        "ssl": _GroupLasso,
        "decorrelation": _Decorrelation,
        "fbs": _FBS,
        "magnitude": _Magnitude,
        "torch-pruning": _TorchPruning,
    }
)


def make_method(config: PruningConfig, model: nn.Module, batches: Batches, steps: int) -> Method:
    """The method that a config names, begun on a model.

    Args:
        model: dense, or for "magnitude" gated. Changed in place or copied, always alike, so that an interrupted run can
            begin like this and load its state.
        batches: (images, labels) of the training split, not augmented.
        steps: of the whole run.
    Raises: ModelError, ConfigError, BackendError: what the methods' own modules raise.
    """
    return _METHODS[config.method](config, model, batches, steps)


def _least(reduction: Callable[[float], float], wanted: float) -> float:
    """The smallest x in (0, 1), to 2⁻¹⁰, at which a rising function of it is as large as is wanted.

    Raises: ModelError: it nowhere is.
    """
    low, high = 0.0, 1 - 2.0**-BISECTIONS
    most = reduction(high)
    if most < wanted:
        raise ModelError(f"mac_reduction must be at most {most:.2f}, where every layer keeps a channel, got {wanted}")
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if reduction(middle) >= wanted else (middle, high)
    return high
