"""Numbers as evaluations need them, whatever the flags of JAX say."""

import contextlib
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def single() -> Iterator[None]:
    """Computes in float32, with products in full precision on every backend."""
    with jax.enable_x64(False), jax.default_matmul_precision("highest"):
        yield
