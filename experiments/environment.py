"""What the commands share: how JAX is set up, flags, and errors as one sentence."""

import contextlib
import errno
import os
import pathlib
import re
import runpy
from collections.abc import Callable, Iterator

import jax
from absl import app, flags, logging
from ml_collections import config_dict

from prunejax import names

CONFIG_HELP = (
    "The experiment: a file of experiments/configs/. Any key of it can be set after it, as in "
    "--config.batch_size=64; experiments/configs/base.py lists the keys, and those of "
    "config.method are the attributes of the method in prunejax/methods/."
)

flags.DEFINE_integer(
    "cpu_devices",
    None,
    "CPU devices that share a batch; by default as many as there are cores. "
    "Without effect on GPUs and TPUs.",
    lower_bound=1,
)

flags.DEFINE_bool(
    "distributed",
    False,
    "This is one of several processes that train together, each started with the same command "
    "(on a TPU pod or a cluster that jax.distributed recognises).",
)


def cache_directory() -> pathlib.Path:
    """Where compiled programs are kept between runs: the user's cache folder."""
    root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(root) / "prunejax" / "jax"


def configure(cpu_devices: int | None = None) -> None:
    """Shares the processor's cores between JAX devices and keeps compiled programs.

    To be called before anything touches a device.

    One CPU device does not keep two cores busy; two devices with half a batch each do.

    Args:
      cpu_devices: CPU devices to make; by default the cores, down to a power of two (for batch
        sizes are), and at most 8. Without effect on GPUs and TPUs, or once a backend has started.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # only Linux has it
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    devices = cpu_devices or min(8, 2 ** (cores.bit_length() - 1))
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", devices)
    jax.config.update("jax_compilation_cache_dir", os.fspath(cache_directory()))
    # Orbax reports every save in ten lines at level INFO.
    logging.set_verbosity(logging.WARNING)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def run(main: Callable[[], None]) -> None:
    """Parses the flags, sets JAX up and runs `main`; errors end in one sentence."""

    def guarded(argv: list[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"Unknown arguments: {' '.join(argv[1:])}.")
        with _errors_as_sentences():
            if flags.FLAGS.distributed:
                jax.distributed.initialize()
            configure(flags.FLAGS.cpu_devices)
            main()

    app.run(guarded, flags_parser=_parse)


@contextlib.contextmanager
def _errors_as_sentences() -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError, RuntimeError) as error:
        logging.debug("In full:", exc_info=True)
        full = isinstance(error, OSError) and error.errno in (
            errno.ENOSPC,
            errno.EDQUOT,
            errno.EFBIG,
        )
        advice = ". Make room, and the same command goes on where it was." if full else ""
        raise SystemExit(f"{type(error).__name__}: {error}{advice}") from error
    except KeyboardInterrupt as error:
        raise SystemExit("Interrupted. The same command goes on where it was.") from error


def _parse(argv: list[str]) -> list[str]:
    """Parses as absl does, but says in a sentence what is wrong with the config's flags."""
    file, _ = _config_file(argv)
    if file is not None and not pathlib.Path(file).is_file():
        raise SystemExit(
            f"config is {file!r}, but there is no such file; see experiments/configs/."
        )
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError) as error:
        raise SystemExit(_unknown_key(argv) or str(error)) from error


def _config_file(argv: list[str]) -> tuple[str | None, list[str]]:
    """What follows --config, after a space or an equals sign, and what get_config is given."""
    file = None
    for argument, following in zip(argv, [*argv[1:], None], strict=True):
        if match := re.fullmatch(r"--?config(?:=(.*))?", argument):
            file = following if match.group(1) is None else match.group(1)
    if file is None:
        return None, []
    file, *argument = file.split(":", 1)
    return file, argument


def _unknown_key(argv: list[str]) -> str | None:
    file, argument = _config_file(argv)
    if file is None:
        return None
    overrides = [m.group(1) for a in argv if (m := re.match(r"--?config\.([\w.]+)", a))]
    module = runpy.run_path(file)
    if "get_config" not in module:
        return f"config is {file!r}, which has no get_config; take another of experiments/configs/."
    config = module["get_config"](*argument)
    for override in overrides:
        branch = config
        for key in override.split("."):
            if not isinstance(branch, config_dict.ConfigDict) or key not in branch:
                valid = branch.keys() if isinstance(branch, config_dict.ConfigDict) else ()
                return f"--config.{override}: {names.unknown('config key', key, valid)}"
            branch = branch[key]
    return None
