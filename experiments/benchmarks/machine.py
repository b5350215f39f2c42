"""On what a benchmark ran: its kind, and how much memory it took."""

import contextlib
import os
import pathlib
import platform
import resource
import sys
from typing import Any

import jax


def description() -> dict[str, Any]:
    """Its kind, nothing by which it could be recognised."""
    return {
        "backend": jax.default_backend(),
        "device": jax.local_devices()[0].device_kind,
        "devices": jax.local_device_count(),
        "processor": _processor(),
        "cores": cores(),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def _processor() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def reset_peak_memory() -> None:
    """Lets `peak_memory_since_reset_mib` begin anew, where the system can (Linux)."""
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/clear_refs").write_text("5")


def peak_memory_since_reset_mib() -> float | None:
    """Of the whole process, with what it held before; None where the system cannot tell."""
    with contextlib.suppress(OSError, ValueError):
        if os.access("/proc/self/clear_refs", os.W_OK):
            for line in pathlib.Path("/proc/self/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) / 2**10
    return None


def peak_memory_mib() -> float:
    """Of the whole process, peers and all; since the last reset where there was one."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
