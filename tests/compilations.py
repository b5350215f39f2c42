"""What is compiled while a test does something."""

import contextlib
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """The names of the programs that XLA compiles in the context, or finds in its cache on disk.

    Those are more than what is traced: other devices or another sharding are another program too.
    """
    compiled: list[str] = []

    def listen(event: str, _: float, fun_name: str = "", **__) -> None:
        if event.endswith("backend_compile_duration"):
            compiled.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
