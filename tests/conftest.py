"""All tests run on two CPU devices and share the compiled programs of earlier runs."""

import os

# Most of the tests' time is compilation of programs that then run for milliseconds.
_QUICK_TO_COMPILE = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
os.environ["XLA_FLAGS"] = f"{_QUICK_TO_COMPILE} {os.environ.get('XLA_FLAGS', '')}"

from experiments import environment  # noqa: E402 - XLA reads its flags when it starts

environment.configure(cpu_devices=2)
