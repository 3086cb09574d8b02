"""The machine that this process runs on, as far as it decides how fast inference is."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any, Final

FLAGS: Final = (
    "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_tile", "amx_bf16", "amx_int8", "asimd", "asimddp", "bf16", "i8mm", "sve",
)  # fmt: skip
"""Of /proc/cpuinfo: what decides how fast inference can be."""

_NUMBERS: Final = ("cpu family", "model", "stepping", "CPU implementer", "CPU variant", "CPU revision")


def cpu_model() -> str:
    """The CPU's model, as the system calls it."""
    return _cpu()[0] or platform.processor() or platform.machine()


def cpu_identity() -> str:
    """The model with its numbers, where the system tells them: names are shared by generations, in clouds above all."""
    fields = _cpuinfo()
    numbers = [f"{name} {fields[name]}" for name in _NUMBERS if name in fields]
    return ", ".join([cpu_model(), *numbers])


def describe() -> dict[str, Any]:
    """CPU, its flags that matter, cores, kernel and load of this machine, as plain JSON values."""
    flags = _cpu()[1]
    return {
        "cpu": cpu_model(),
        "flags": [flag for flag in FLAGS if flag in flags],
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.release()}",
        "load_average_at_start": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
    }


def computes_bf16() -> bool:
    """Whether this CPU has arithmetic in bfloat16; without it libraries emulate it, which measures nothing."""
    return bool(_cpu()[1] & {"avx512_bf16", "amx_bf16", "bf16"})


def _cpu() -> tuple[str, set[str]]:
    """Model name (on AArch64: part number) and flags from /proc/cpuinfo; empty where there is none."""
    fields = _cpuinfo()
    model = fields.get("model name", fields.get("CPU part", ""))
    return model, {*fields.get("flags", fields.get("Features", "")).split()}


def _cpuinfo() -> dict[str, str]:
    """The first core's fields of /proc/cpuinfo; none where there is no such file."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return {}
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    return fields
