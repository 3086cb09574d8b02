"""Native operators on raw pointers; use them through headgate.ops."""

_View = tuple[int, int]  # address of the first element, 0 for none, and elements between pixels
# weight, bias, running_mean, running_var, training, momentum, eps, mean (out), rstd (out)
_Norm = tuple[int, int, int, int, bool, float, float, int, int]
# weight, bias, mean, rstd, training, grad_weight (out), grad_bias (out)
_NormGrad = tuple[int, int, int, int, bool, int, int]
# bfloat16, images, pixels per image, channels, groups, grouped, slope, relu
_GatedShape = tuple[bool, int, int, int, int, bool, float, bool]
_NormShape = tuple[bool, int, int, bool]  # bfloat16, rows, channels, relu

class BackendError(OSError): ...

def usable_isas() -> list[str]: ...
def choose_isa(wanted: str, in_build: list[str], in_cpu: list[str]) -> str: ...
def active_isa() -> str: ...
def set_isa(isa: str) -> None: ...
def gated_norm_forward(
    shape: _GatedShape,
    final_sum: _View,
    partial_sum: _View,
    residual: _View,
    output: _View,
    final_norm: _Norm,
    partial_norm: _Norm,
    threshold: int,
    score_var: int,
    scale: int,
    counts: int,
    threads: int,
) -> None: ...
def gated_norm_backward(
    shape: _GatedShape,
    final_sum: _View,
    partial_sum: _View,
    output: _View,
    grad_output: _View,
    grad_counts: int,
    grad_residual: _View,
    grad_final: _View,
    grad_partial: _View,
    final_norm: _NormGrad,
    partial_norm: _NormGrad,
    threshold: int,
    scale: int,
    grad_threshold: int,
    threads: int,
) -> None: ...
def norm_act_forward(
    shape: _NormShape, input: _View, residual: _View, output: _View, norm: _Norm, threads: int
) -> None: ...
def norm_act_backward(
    shape: _NormShape,
    input: _View,
    output: _View,
    grad_output: _View,
    grad_residual: _View,
    grad_input: _View,
    norm: _NormGrad,
    threads: int,
) -> None: ...
