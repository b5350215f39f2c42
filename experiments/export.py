r"""Writes a finished run's network as files that need nothing of this library.

    python -m experiments.export --workdir=runs/small --output=runs/small/exported

makes `exported.stablehlo`, a program from images in [0, 1] to logits, and `exported.safetensors`,
its weights. A network of experiments.shrink is written as small as it is; one under a mask has
zeros.
"""

import pathlib
from collections.abc import Sequence

from absl import flags

from experiments import environment, from_config, progress, run_directory
from prunejax import names
from prunejax.shrinking import export as exporting

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def export(
    workdir: pathlib.Path,
    output: pathlib.Path,
    *,
    batch: str | int = "b",
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
) -> exporting.Exported:
    """Exports the network of the run in `workdir`.

    Args:
      workdir: the run's folder.
      output: of the files, without their endings; its folder is made where it does not exist.
      batch: as `shrinking.export.export` takes it.
      platforms: of `PLATFORMS`, those where the program is to run.

    Returns:
      The paths of both files.

    Raises:
      FileNotFoundError: a folder without a finished run.
      ValueError: a number of images that the network does not run on, or an unknown platform.
    """
    for platform in platforms:
        names.lookup("platform", platform, dict.fromkeys(PLATFORMS))
    config = run_directory.read_config(workdir)
    dataset = from_config.load_split(config, "test")
    classifier, _ = from_config.load_trained(config, workdir, dataset)
    return exporting.export(classifier, dataset.image_shape, output, batch, platforms=platforms)


def main() -> None:
    """Runs the command."""
    given = flags.FLAGS.images
    with progress.bars() as report:
        report("export", 0, 1)
        files = export(
            pathlib.Path(flags.FLAGS.workdir),
            pathlib.Path(flags.FLAGS.output),
            batch=given or "b",
            platforms=flags.FLAGS.platforms,
        )
        report("export", 1, 1)
    print(*files, sep="\n")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of a finished run.")
    flags.DEFINE_string("output", None, "Path of the files, without their endings.")
    flags.DEFINE_integer(
        "images", None, "Images that the program takes at a time; any number by default.", 1
    )
    flags.DEFINE_list(
        "platforms", "cpu,cuda,tpu", f"Where the program is to run, of {', '.join(PLATFORMS)}."
    )
    flags.adopt_module_key_flags(environment)
    flags.mark_flags_as_required(["workdir", "output"])
    environment.run(main)
