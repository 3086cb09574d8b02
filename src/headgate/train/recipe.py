"""What a training run is: one frozen, validated, JSON-able record."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from headgate.baselines import PruningConfig
from headgate.errors import ConfigError
from headgate.models import Architecture
from headgate.nn import GateConfig
from headgate.nn.config import require_finite


def _one_of(name: str, value: object, kind: object) -> None:
    """Require that a field holds one of its Literal's values."""
    _require(value in get_args(kind), f"{name} must be one of {', '.join(map(str, get_args(kind)))}, got {value!r}")


def _finite(options: object, *names: str) -> None:
    """Require finite numbers in the fields of these names; None is left alone."""
    for name in names:
        if getattr(options, name) is not None:
            require_finite(name, getattr(options, name))


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


Loading = Literal["memory", "stream"]
Augmentation = Literal["crop-flip", "crop", "imagenet", "none"]
TestSplit = Literal["test", "validation"]
Schedule = Literal["steps", "cosine"]
SteeringKind = Literal["threshold", "penalty", "pull"]
Precision = Literal["fp32", "bf16"]
MAX_LR: Final = 1000.0  # far above any that trains; far below what float32 overflows at


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where images come from and how they are prepared.

    Attributes:
        source: a folder (parquet or one folder per class), a name on the Hub, or "digits" (scikit-learn's, embedded).
        loading: "memory" keeps all images as one uint8 tensor; "stream" decodes them as they are needed.
        augment: in memory: "crop-flip" (pad 4, crop, mirror), "crop" (no mirror: digits) or "none"; streamed:
            "imagenet" (the paper's, with PCA colour) or "crop-flip" (the same without colour).
        size: side of the square that the network sees; streamed images only.
        workers: decoding processes; streamed images only.
        test_split: what is evaluated on, of a set that has both: of ImageNet and its likes the labels of "test" are
            not public. A set that has only one of the two gives it under either name.
    """

    source: str
    loading: Loading = "memory"
    augment: Augmentation = "crop-flip"
    size: int = 224
    workers: int = 2
    test_split: TestSplit = "test"

    def __post_init__(self) -> None:
        _require(isinstance(self.source, str), f"source must be a path or a name, as a string, got {self.source!r}")
        _one_of("test_split", self.test_split, TestSplit)
        _one_of("loading", self.loading, Loading)
        _one_of("augment", self.augment, Augmentation)
        fitting = ("crop-flip", "imagenet") if self.loading == "stream" else ("crop-flip", "crop", "none")
        _require(
            self.augment in fitting, f"augment must be one of {fitting} with loading={self.loading}, got {self.augment}"
        )
        _require(self.size >= 1, f"size must be ≥ 1, got {self.size}")
        _require(self.workers >= 0, f"workers must be ≥ 0, got {self.workers}")


@dataclass(frozen=True, kw_only=True)
class OptimiserConfig:
    """SGD, as in the paper (appendix A.3).

    Attributes:
        weight_decay: of everything but thresholds, which their own loss pulls.
        max_grad_norm: clip the global norm of the gradient; None: never.
    """

    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    nesterov: bool = False
    max_grad_norm: float | None = None

    def __post_init__(self) -> None:
        _finite(self, "lr", "momentum", "weight_decay", "max_grad_norm")
        _require(0 < self.lr <= MAX_LR, f"lr must be in (0, {MAX_LR:g}], got {self.lr}")
        _require(0 <= self.momentum < 1, f"momentum must be in [0, 1), got {self.momentum}")
        _require(self.weight_decay >= 0, f"weight_decay must be ≥ 0, got {self.weight_decay}")
        _require(
            self.max_grad_norm is None or self.max_grad_norm > 0,
            f"max_grad_norm must be > 0, or None for never, got {self.max_grad_norm}",
        )


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The learning rate over the epochs.

    Attributes:
        kind: "steps": × `gamma` at each of `milestones`; "cosine": half a cosine down to 0.
        warmup_epochs: linear from 0 first; thresholds can run away without it.
    """

    kind: Schedule = "cosine"
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    warmup_epochs: float = 0.0

    def __post_init__(self) -> None:
        _one_of("kind", self.kind, Schedule)
        _finite(self, "gamma", "warmup_epochs")
        _require(self.warmup_epochs >= 0, f"warmup_epochs must be ≥ 0, got {self.warmup_epochs}")


@dataclass(frozen=True, kw_only=True)
class BudgetConfig:
    """How sparse the gates shall be, and how to get there.

    Attributes:
        mac_reduction: dense ÷ executed MACs of the gated layers to end at; the controller finds the thresholds.
        target: T in standard deviations, instead; exactly one of the two is given for a gated run.
        steering: what the controller turns. "threshold": one T that all thresholds share. "penalty": a multiplier on
            a penalty for expected MACs above the target; thresholds then learn from gradients alone. "pull", with
            `target` only: thresholds start at `GateConfig.threshold`, and the threshold loss alone takes them to T (the
            paper's way: at its λ that takes tens of epochs). With a `target`, "threshold" starts all of them at T.
        weight: λ of the threshold loss.
        weight_final: λ at the end; it moves linearly from `weight`. None: constant.
        close_epochs: epochs over which the gates close from fully open to the target. 0: at the target from the start.
        elastic: half-width of the uniform threshold offset drawn for every other step; 0 switches it off.
        slope_final: ε at the end; it moves linearly from `GateConfig.slope`. None: constant.
        forced: hold the gates in one state throughout: "closed" is the static grouped control.
    """

    mac_reduction: float | None = None
    target: float | None = None
    steering: SteeringKind = "threshold"
    weight: float = 1e-4
    weight_final: float | None = None
    close_epochs: float = 0.0
    elastic: float = 0.0
    slope_final: float | None = None
    forced: Literal["open", "closed"] | None = None

    def __post_init__(self) -> None:
        _one_of("steering", self.steering, SteeringKind)
        _finite(self, "mac_reduction", "target", "weight", "weight_final", "close_epochs", "elastic", "slope_final")
        _require(self.forced in (None, "open", "closed"), f"forced must be open or closed, got {self.forced!r}")
        named = sum(value is not None for value in (self.mac_reduction, self.target, self.forced))
        _require(
            named == 1,
            "exactly one of mac_reduction, target and forced must be given, got "
            f"mac_reduction={self.mac_reduction}, target={self.target}, forced={self.forced!r}",
        )
        _require(
            self.mac_reduction is None or self.mac_reduction > 1, f"mac_reduction must be > 1, got {self.mac_reduction}"
        )
        _require(self.close_epochs >= 0, f"close_epochs must be ≥ 0, got {self.close_epochs}")
        _require(self.elastic >= 0, f"elastic must be ≥ 0, got {self.elastic}")
        for name in ("weight", "weight_final"):
            value = getattr(self, name)
            _require(value is None or value >= 0, f"{name} must be ≥ 0, got {value}")
        _require(self.slope_final is None or self.slope_final > 0, f"slope_final must be > 0, got {self.slope_final}")
        _require(
            self.forced is None or not (self.elastic or self.close_epochs or self.slope_final),
            "forced gates do not move: they exclude elastic, close_epochs and slope_final",
        )
        _require(
            self.steering != "penalty" or self.mac_reduction is not None,
            "steering='penalty' needs mac_reduction: it has no target T",
        )
        _require(
            self.steering != "pull" or (self.target is not None and not self.close_epochs and self.weight > 0),
            "steering='pull' needs a target and a weight > 0 to pull with, and no close_epochs: thresholds start at "
            f"GateConfig.threshold; got target={self.target}, weight={self.weight}, close_epochs={self.close_epochs}",
        )


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Knowledge distillation (Hinton et al., 2015).

    Attributes:
        teacher: a checkpoint written by `headgate.save`, or the name of a model that comes with headgate.
        alpha: share of the teacher in the loss.
        temperature: softens both distributions.
    """

    teacher: str
    alpha: float = 0.5
    temperature: float = 4.0

    def __post_init__(self) -> None:
        _require(0 <= self.alpha <= 1, f"alpha must be in [0, 1], got {self.alpha}")
        _finite(self, "alpha", "temperature")
        _require(self.temperature > 0, f"temperature must be > 0, got {self.temperature}")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole run. Recipes are made by the functions of `headgate.recipes` and changed by `dataclasses.replace`.

    Attributes:
        gate: None trains the dense network.
        pruning: another method than gates, on the dense network; only "magnitude" goes together with gates.
        batch_size: images of one optimiser step over all processes.
        init_from: checkpoint of the dense network to start from, or the name of one that comes with headgate.
        precision: "bf16" computes convolutions in bfloat16 (autocast); parameters stay float32.
        sync_norm: batch statistics over all processes; then N processes train like one.
        eval_every: epochs between evaluations; the last epoch is always evaluated.
        eval_images: evaluate during training on about so many test images; None: all. The end is always on all.
    """

    name: str
    architecture: Architecture
    data: DataConfig
    epochs: int
    batch_size: int = 128
    gate: GateConfig | None = None
    budget: BudgetConfig | None = None
    pruning: PruningConfig | None = None
    optimiser: OptimiserConfig = OptimiserConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    distill: DistillConfig | None = None
    init_from: str | None = None
    precision: Precision = "fp32"
    sync_norm: bool = False
    label_smoothing: float = 0.0
    seed: int = 0
    eval_every: int = 1
    eval_images: int | None = None

    def __post_init__(self) -> None:
        _one_of("precision", self.precision, Precision)
        _require(self.epochs >= 1, f"epochs must be ≥ 1, got {self.epochs}")
        _finite(self, "label_smoothing")
        _require(0 <= self.label_smoothing < 1, f"label_smoothing must be in [0, 1), got {self.label_smoothing}")
        _require(0 <= self.seed < 2**32, f"seed must be in [0, 2^32), got {self.seed}")
        _require(self.eval_images is None or self.eval_images >= 1, f"eval_images must be ≥ 1, got {self.eval_images}")
        _require(
            self.budget is None or self.budget.close_epochs <= self.epochs,
            f"close_epochs must be at most the {self.epochs} epochs of the run, got "
            f"{self.budget.close_epochs if self.budget is not None else None}",
        )
        _require(self.batch_size >= 1, f"batch_size must be ≥ 1, got {self.batch_size}")
        _require(self.eval_every >= 1, f"eval_every must be ≥ 1, got {self.eval_every}")
        _require(
            (self.gate is None) == (self.budget is None),
            "a gated run needs both gate and budget (how far to gate), a dense one neither",
        )
        _require(
            self.gate is None or self.pruning is None or self.pruning.method == "magnitude",
            "a gated run takes pruning by magnitude only, got "
            f"{self.pruning.method if self.pruning is not None else None!r}",
        )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able dict."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Recipe:
        """The inverse of `to_dict`.

        Raises: ConfigError: unknown or missing fields, or values out of range.
        """
        parts = {
            "architecture": Architecture,
            "data": DataConfig,
            "gate": GateConfig,
            "budget": BudgetConfig,
            "pruning": PruningConfig,
            "optimiser": OptimiserConfig,
            "schedule": ScheduleConfig,
            "distill": DistillConfig,
        }
        try:
            values = {
                key: parts[key](**_tuples(value)) if key in parts and value is not None else value
                for key, value in data.items()
            }
            return cls(**values)
        except (TypeError, AttributeError) as error:
            raise ConfigError(f"not a recipe of this version of headgate: {error}") from error


def _tuples(value: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(item) if isinstance(item, list) else item for key, item in value.items()}
