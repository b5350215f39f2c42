"""All tests run on two CPU devices and share the compiled programs of earlier runs."""

import gc
import os
import pathlib
from importlib import metadata

import pytest

# Most of the tests' time is compilation of programs that then run for milliseconds.
_QUICK_TO_COMPILE = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if metadata.version("jax").startswith("0.10."):  # later ones end at flags that they do not know
    _QUICK_TO_COMPILE += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{_QUICK_TO_COMPILE} {os.environ.get('XLA_FLAGS', '')}"

import jax  # noqa: E402

from experiments import environment  # noqa: E402 - XLA reads its flags when it starts

environment.configure(cpu_devices=2)
# Traces leave millions of objects behind; looking through them again and again takes its time.
gc.set_threshold(200_000, 20, 100)

# Linux ends a process that maps more than 65,530 pieces of memory; each program takes several.
_MOST_MAPS = 25_000


@pytest.fixture(scope="module", autouse=True)
def room_for_programs():
    """Forgets compiled programs in time; those that are asked for again are found on disk."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > _MOST_MAPS:
        jax.clear_caches()
        gc.collect()
