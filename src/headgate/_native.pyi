"""
Native operators on raw pointers, behind headgate.ops, and the engine, behind headgate.engine.
"""

from collections.abc import Sequence

import numpy
import numpy.typing

class BackendError(OSError):
    pass

def usable_isas() -> list[str]:
    """
    Instruction sets that this build contains and this CPU runs, the best one first.
    """

def choose_isa(wanted: str, in_build: Sequence[str], in_cpu: Sequence[str]) -> str:
    """
    The named instruction set, or the best one for '', of those that a build and a CPU have.
    """

def active_isa() -> str:
    """The instruction set in use."""

def set_isa(isa: str) -> None:
    """Use the named instruction set from now on; '' means the best one."""

def gated_norm_forward(
    shape: tuple[bool, int, int, int, int, bool, float, bool],
    final_sum: tuple[int, int],
    partial_sum: tuple[int, int],
    residual: tuple[int, int],
    output: tuple[int, int],
    final_norm: tuple[int, int, int, int, bool, float, float, int, int],
    partial_norm: tuple[int, int, int, int, bool, float, float, int, int],
    threshold: int,
    score_var: int,
    scale: int,
    counts: int,
    threads: int,
) -> None: ...
def gated_norm_backward(
    shape: tuple[bool, int, int, int, int, bool, float, bool],
    final_sum: tuple[int, int],
    partial_sum: tuple[int, int],
    output: tuple[int, int],
    grad_output: tuple[int, int],
    grad_counts: int,
    grad_residual: tuple[int, int],
    grad_final: tuple[int, int],
    grad_partial: tuple[int, int],
    final_norm: tuple[int, int, int, int, bool, int, int],
    partial_norm: tuple[int, int, int, int, bool, int, int],
    threshold: int,
    scale: int,
    grad_threshold: int,
    threads: int,
) -> None: ...
def norm_act_forward(
    shape: tuple[bool, int, int, bool],
    input: tuple[int, int],
    residual: tuple[int, int],
    output: tuple[int, int],
    norm: tuple[int, int, int, int, bool, float, float, int, int],
    threads: int,
) -> None: ...
def norm_act_backward(
    shape: tuple[bool, int, int, bool],
    input: tuple[int, int],
    output: tuple[int, int],
    grad_output: tuple[int, int],
    grad_residual: tuple[int, int],
    grad_input: tuple[int, int],
    norm: tuple[int, int, int, int, bool, int, int],
    threads: int,
) -> None: ...
def usable_cores() -> int:
    """Cores that this process may keep busy: its CPU affinity, and its container's quota."""

class PlanError(OSError):
    pass

class Engine:
    """A loaded plan; use it through headgate.Engine."""

    def __init__(self, path: str, threads: int) -> None: ...
    @property
    def input_shape(self) -> tuple[int, int, int]: ...
    @property
    def output_shape(self) -> tuple[int, int, int]: ...
    @property
    def threads(self) -> int: ...
    def run(self, images: numpy.typing.NDArray[numpy.float32]) -> numpy.typing.NDArray[numpy.float32]: ...
    def shift_thresholds(self, offset: float) -> None: ...
    def tune(
        self, images: numpy.typing.NDArray[numpy.float32], repeats: int
    ) -> list[tuple[str, float, float, float, str]]: ...
    def set_path(self, layer: str, masked: bool) -> None: ...
    def stats(self) -> list[tuple[str, str, int, float, int, int, int, int, str]]: ...
    def reset_stats(self) -> None: ...
