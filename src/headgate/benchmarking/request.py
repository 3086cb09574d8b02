"""What is to be timed: one frozen, validated, JSON-able record."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Self, get_args

from headgate.errors import ConfigError

Mask = Literal["iid", "clustered", "group"]
Threads = Literal["one", "all"]
Kind = Literal["plan", "trained", "synthetic"]
Dtype = Literal["float32", "bfloat16", "int8"]
"""What convolutions are computed in; inputs and outputs of a network are float32 anyhow."""

PLAN_SUFFIX: Final = ".hgplan"
RIVALS: Final = ("torch", "torch-channels-last", "torch-compile", "onnxruntime", "openvino", "ncnn")
"""Libraries that may run the dense network."""
FAMILIES: Final = ("bf16", "int8", "grouped", "thinner")
"""Other rivals: libraries on the dense network in a narrower dtype, and networks pruned statically to the same MACs."""
NARROW: Final[Mapping[Dtype, str]] = {"bfloat16": "bf16", "int8": "int8"}
"""The family that stands for the dense network in a dtype."""
MOST_REPEATS: Final = 100_000
OPTIONS: Final = {
    **{name: f"--{name}" for name in ("against", "data", "dense", "groups", "image", "batches", "threads", "repeats")},
    "densities": "--density",
    "masks": "--mask",
    "precisions": "--precision",
    "held": "--isa",
}
"""Of `headgate bench`, by field."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What `benchmark` is asked for.

    Attributes:
        models: run folders, checkpoints or pretrained names, of one architecture; or one plan file; or, with
            `densities`, one architecture.
        data: of trained models: a folder or Hub name of images, or an .npy file of prepared ones, float32
            (n, c, h, w); of a plan, such a file. None: what the run was trained on; white noise for a plan.
        dense: the trained dense counterpart. None: the first model, or the plan, with its gates held open.
        densities, masks: synthetic mode: every gated layer at each density with each kind of mask; see `synthetic`.
        groups: G of the synthetic mode.
        image: (channels, height, width) of the synthetic mode. None: what the architecture was designed for.
        precisions: what the engine's plans are exported in, and compared with libraries in; a plan file has its own.
        against: "all", or any of `RIVALS` and `FAMILIES`; nothing: the engine alone.
        batches: images of one call.
        threads: "one" is pinned to a core; "all" are as many as this process may use cores.
        repeats: timed calls of each runner.
        held: hold the engine and the libraries to this instruction set.
        seed: of weights and noise.
    Raises: ConfigError.
    """

    models: tuple[str, ...]
    data: str | None = None
    dense: str | None = None
    densities: tuple[float, ...] = ()
    masks: tuple[Mask, ...] = ()
    groups: int = 8
    image: tuple[int, int, int] | None = None
    precisions: tuple[Dtype, ...] = ("float32",)
    against: tuple[str, ...] = ("all",)
    batches: tuple[int, ...] = (1, 32)
    threads: tuple[Threads, ...] = ("one", "all")
    repeats: int = 31
    held: Literal["avx2"] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, values, accepted in (
            ("mask", self.masks, get_args(Mask)),
            ("threads", self.threads, get_args(Threads)),
            ("precision", self.precisions, get_args(Dtype)),
            ("against", self.against, ("all", *RIVALS, *FAMILIES)),
            ("isa", () if self.held is None else (self.held,), ("avx2",)),
        ):
            for value in values:
                _require(value in accepted, f"{name} must be of {', '.join(accepted)}, got {value!r}")
        lists: tuple[tuple[str, tuple[object, ...], bool], ...] = (
            ("models", self.models, True),
            ("density", self.densities, False),
            ("mask", self.masks, False),
            ("precision", self.precisions, True),
            ("batches", self.batches, True),
            ("threads", self.threads, True),
        )
        for name, given, needed in lists:
            _require(bool(given) or not needed, f"{name} must hold at least one value, got none")
            _require(len(set(given)) == len(given), f"{name} must hold each value once, got {_words(given)}")
        for batch in self.batches:
            _require(1 <= batch <= 4096, f"batches must be in [1, 4096], got {batch}")
        _require(2 <= self.repeats <= MOST_REPEATS, f"repeats must be in [2, {MOST_REPEATS}], got {self.repeats}")
        for density in self.densities:
            _require(0 <= density < 1, f"density must be in [0, 1), got {density}")
        if self.image is not None:
            _require(min(self.image) >= 1, f"image must be channels, height and width, each ≥ 1, got {self.image}")
        self._check_kind()

    def _check_kind(self) -> None:
        _require(
            bool(self.densities) == bool(self.masks),
            f"density and mask go together: the synthetic mode needs both, got density={list(self.densities)} and "
            f"mask={list(self.masks)}",
        )
        if self.kind == "synthetic":
            _require(len(self.models) == 1, f"with density, one architecture is timed, got {len(self.models)} models")
            _require(
                self.data is None and self.dense is None,
                "with density, weights and images are synthetic: drop data and dense, or drop density and mask",
            )
            return
        _require(self.image is None, "image is for the synthetic mode: a trained model or a plan knows its own")
        if self.kind == "plan":
            _require(len(self.models) == 1, f"one plan is timed at a time, got {len(self.models)} models")
            _require(
                self.precisions == ("float32",),
                f"a plan has its own precision, got precision={_words(self.precisions)}; export another plan",
            )
            _require(
                self.dense is None,
                f"a plan is compared with its own gates held open, got dense={self.dense}; drop dense, or name the run "
                "that the plan was exported from",
            )

    @property
    def kind(self) -> Kind:
        """What `models` holds."""
        if self.densities:
            return "synthetic"
        return "plan" if any(model.endswith(PLAN_SUFFIX) for model in self.models) else "trained"

    def wants(self, rival: str) -> bool:
        """Whether a rival, or a family of them, is asked for."""
        return "all" in self.against or rival in self.against

    def wants_dense(self, library: str, dtype: Dtype, *, engine: tuple[Dtype, ...]) -> bool:
        """Whether a library is to run the dense network in a dtype: as the engine does, or because it may be faster.

        Args:
            engine: what the engine runs it in.
        """
        return (dtype in ("float32", *engine) and self.wants(library)) or (
            dtype in NARROW and self.wants(NARROW[dtype])
        )

    def command(self) -> str:
        """What to type to ask for the same."""
        words = ["headgate", "bench", *self.models]
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in OPTIONS and value != field.default:
                words += [OPTIONS[field.name], *(map(str, value) if isinstance(value, tuple) else [str(value)])]
        return shlex.join(words)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        given: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in values.items()}
        return cls(**given)


def _words(values: tuple[object, ...]) -> str:
    return " ".join(map(str, values))


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)
