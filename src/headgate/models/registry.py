"""Models by name: `Architecture` names one, `.build()` makes it, `identify` finds the name of a given model."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from types import MappingProxyType
from typing import Any, Final, Self

import torch
from torch import nn

from headgate.errors import ModelError
from headgate.models.alexnet import alexnet_cifar
from headgate.models.binary import binary_resnet20, binary_vgg_small, digits_binary_resnet
from headgate.models.digits import digits_cnn
from headgate.models.mobilenet import mobilenetv1_cifar
from headgate.models.resnet import digits_resnet, resnet18_cifar, resnet20, resnet32, resnet56
from headgate.models.vgg import vgg16_cifar


@dataclass(frozen=True, kw_only=True)
class _Entry:
    build: Callable[..., nn.Module]
    width: int
    in_channels: int = 3
    size: int = 32


_OWN: Final[Mapping[str, _Entry]] = MappingProxyType(
    {
        "resnet18-cifar": _Entry(build=resnet18_cifar, width=64),
        "resnet20": _Entry(build=resnet20, width=16),
        "resnet32": _Entry(build=resnet32, width=16),
        "resnet56": _Entry(build=resnet56, width=16),
        "vgg16-cifar": _Entry(build=vgg16_cifar, width=64),
        "mobilenetv1-cifar": _Entry(build=mobilenetv1_cifar, width=32),
        "alexnet-cifar": _Entry(build=alexnet_cifar, width=64),
        "binary-resnet20": _Entry(build=binary_resnet20, width=16),
        "binary-vgg-small": _Entry(build=binary_vgg_small, width=128),
        "digits-cnn": _Entry(build=digits_cnn, width=32, in_channels=1, size=8),
        "digits-resnet": _Entry(build=digits_resnet, width=16, in_channels=1, size=8),
        "digits-binary-resnet": _Entry(build=digits_binary_resnet, width=16, in_channels=1, size=8),
    }
)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What it takes to build a model again, without its weights.

    Args:
        name: one of `names()`, or "timm/<name>".
        num_classes, in_channels: 0 is the model's own default, filled in at construction.
        width: channels of the first stage, for headgate's own models only; None is the default, filled in likewise.

    Raises: ModelError: a number is negative or no integer, or a name of headgate's own (without "/") is unknown;
        other names are looked up by `build`.
    """

    name: str
    num_classes: int = 0
    width: int | None = None
    in_channels: int = 0

    def __post_init__(self) -> None:
        if "/" not in self.name and self.name not in _OWN:
            raise _unknown(self.name, names())
        numbers = {"num_classes": self.num_classes, "in_channels": self.in_channels}
        if self.width is not None:
            numbers["width"] = self.width
        for field, value in numbers.items():
            if not isinstance(value, int) or value < (field == "width"):
                raise ModelError(
                    f"expected {field} to be a positive integer, got {value!r}; leave it out for the default"
                )
        own = _OWN.get(self.name)
        object.__setattr__(self, "num_classes", self.num_classes or (10 if own else 1000))
        object.__setattr__(self, "in_channels", self.in_channels or (own.in_channels if own else 3))
        object.__setattr__(self, "width", self.width or (own.width if own else None))

    def build(self) -> nn.Module:
        """A freshly initialised model, with its `architecture` as an attribute.

        Raises: ModelError: the name is unknown (near matches are listed), or the model lacks an option that is set.
        """
        origin, _, rest = self.name.partition("/")
        if self.name in _OWN:
            build = _OWN[self.name].build
            model = build(width=self.width, num_classes=self.num_classes, in_channels=self.in_channels)
        elif origin == "torchvision" and rest:
            model = self._build_torchvision(rest)
        elif origin == "timm" and rest:
            model = self._build_timm(rest)
        else:
            raise _unknown(self.name, names())
        model.architecture = self  # type: ignore[assignment]  # nn.Module's attributes are tensors to mypy
        return model

    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the images that the model was designed for.

        Raises: ModelError: the name is unknown.
        """
        if self.name in _OWN:
            return (self.in_channels, _OWN[self.name].size, _OWN[self.name].size)
        if self.name.startswith("timm/"):
            timm = _timm()
            config = timm.get_pretrained_cfg(self.name.removeprefix("timm/"), allow_unregistered=False)
            if config is None:
                raise _unknown(self.name, [f"timm/{n}" for n in timm.list_models()])
            return (self.in_channels, config.input_size[1], config.input_size[2])
        if self.name not in names():
            raise _unknown(self.name, names())
        size = 299 if self.name == "torchvision/inception_v3" else 224
        return (3, size, size)

    def to_dict(self) -> dict[str, str | int | None]:
        """As plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`.

        Raises: ModelError: the name is missing or not a string, or there is an unknown key.
        """
        known = {f.name for f in fields(cls)}
        if not isinstance(values.get("name"), str) or not set(values) <= known:
            raise ModelError(
                f"expected an architecture with a name and any of {sorted(known)}, got {dict(values)}; "
                "was it written by a newer headgate?"
            )
        return cls(**values)

    def _build_torchvision(self, builder: str) -> nn.Module:
        import torchvision.models

        if self.name not in names():
            raise _unknown(self.name, names())
        self._refuse_width()
        if self.in_channels != 3:
            raise ModelError(f"{self.name}: expected in_channels=3, got {self.in_channels}; use the model from timm/")
        build: Callable[..., nn.Module] = torchvision.models.get_model_builder(builder)
        if builder in ("googlenet", "inception_v3"):  # without the auxiliary classifiers: one output in training too
            return build(weights=None, num_classes=self.num_classes, aux_logits=False, init_weights=True)
        return build(weights=None, num_classes=self.num_classes)

    def _build_timm(self, model_name: str) -> nn.Module:
        timm = _timm()
        if not timm.is_model(model_name):
            raise _unknown(self.name, [f"timm/{n}" for n in timm.list_models()])
        self._refuse_width()
        create_model: Callable[..., nn.Module] = timm.create_model
        return create_model(model_name, pretrained=False, num_classes=self.num_classes, in_chans=self.in_channels)

    def _refuse_width(self) -> None:
        if self.width is not None:
            raise ModelError(f"{self.name}: expected no width, got {self.width}; only headgate's own models have one")


def create(
    name: str, num_classes: int | None = None, *, width: int | None = None, in_channels: int | None = None
) -> nn.Module:
    """Build a model by name; see `Architecture`.

    Raises: ModelError: see `Architecture.build`.
    """
    return Architecture(name=name, num_classes=num_classes or 0, width=width, in_channels=in_channels or 0).build()


def names() -> tuple[str, ...]:
    """headgate's own models and torchvision's classifiers; any "timm/<name>" works too where timm is installed."""
    return (*_OWN, *(f"torchvision/{builder}" for builder in _torchvision_builders()))


def identify(model: nn.Module) -> Architecture | None:
    """Name the architecture that a model was built from, or None where it is not one that `Architecture` can build.

    Reads `model.architecture` where there is one, whatever was done to the model since. Any other torchvision or timm
    model is compared, module by module and shape by shape, with what the builder of that name makes: a model that was
    edited gives None, never a wrong name.
    """
    architecture = getattr(model, "architecture", None)
    if isinstance(architecture, Architecture):
        return architecture
    module = type(model).__module__
    if module.startswith("torchvision.models."):
        candidates = _torchvision_candidates(model, module)
    elif module.startswith("timm."):
        candidates = _timm_candidates(model)
    else:
        return None
    return next((c for c in candidates if _same(model, c)), None)


def _torchvision_candidates(model: nn.Module, module: str) -> list[Architecture]:
    import torchvision.models

    num_classes = next(
        (
            layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
            for layer in reversed(list(model.modules()))
            if isinstance(layer, nn.Linear | nn.Conv2d)
        ),
        0,
    )
    return [
        Architecture(name=f"torchvision/{builder}", num_classes=num_classes, in_channels=3)
        for builder in _torchvision_builders()
        if torchvision.models.get_model_builder(builder).__module__ == module
    ]


def _timm_candidates(model: nn.Module) -> list[Architecture]:
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    name = config.get("architecture")
    num_classes = getattr(model, "num_classes", None)
    stem = next((layer for layer in model.modules() if isinstance(layer, nn.Conv2d)), None)
    if not name or not num_classes or stem is None:
        return []
    return [Architecture(name=f"timm/{name}", num_classes=num_classes, in_channels=stem.in_channels)]


def _same(model: nn.Module, architecture: Architecture) -> bool:
    """Whether building `architecture` gives the model's class, modules and shapes. Costs no weights."""
    try:
        with torch.device("meta"):
            candidate = architecture.build()
    except RuntimeError:  # a constructor that computes with its weights cannot be built without them
        return False
    return (
        type(candidate) is type(model)
        and {k: v.shape for k, v in candidate.state_dict().items()}
        == {k: v.shape for k, v in model.state_dict().items()}
        and repr(candidate) == repr(model)
    )


@functools.cache
def _torchvision_builders() -> tuple[str, ...]:
    import torchvision.models

    return tuple(torchvision.models.list_models(module=torchvision.models))


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise ModelError("a 'timm/…' model needs timm, got no such package; pip install 'headgate[timm]'") from error
    return timm


def _unknown(name: str, known: tuple[str, ...] | list[str]) -> ModelError:
    near = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
    hint = f"did you mean {' or '.join(repr(n) for n in near)}?" if near else "models.names() lists them"
    return ModelError(f"expected the name of a model, got '{name}'; {hint}")
