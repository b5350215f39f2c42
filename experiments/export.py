r"""Writes a finished run's network as files that need nothing of this library.

    python -m experiments.export --workdir=runs/small --output=runs/small/exported

makes `exported.stablehlo`, a program from images in [0, 1] to logits, and `exported.safetensors`,
its weights. A network of experiments.shrink is written as small as it is; one under a mask has
zeros.
"""

import pathlib

from absl import flags

from experiments import environment, from_config, progress, run_directory
from prunejax.shrinking import export as exporting


def export(workdir: pathlib.Path, output: pathlib.Path, *, batch: str | int = "b"):
    """Exports the network of the run in `workdir`.

    Args:
      workdir: the run's folder.
      output: of the files, without their endings; its folder is made where it does not exist.
      batch: as `shrinking.export.export` takes it.

    Returns:
      The paths of both files.

    Raises:
      FileNotFoundError: a folder without a finished run.
      ValueError: a number of images that the network does not run on.
    """
    config = run_directory.read_config(workdir)
    dataset = from_config.load_split(config, "test")
    classifier, _ = from_config.load_trained(config, workdir, dataset)
    output.parent.mkdir(parents=True, exist_ok=True)
    return exporting.export(classifier, dataset.image_shape, output, batch)


def main() -> None:
    """Runs the command."""
    given = flags.FLAGS.images
    with progress.bars() as report:
        report("export", 0, 1)
        files = export(
            pathlib.Path(flags.FLAGS.workdir),
            pathlib.Path(flags.FLAGS.output),
            batch=given or "b",
        )
        report("export", 1, 1)
    print(*files, sep="\n")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of a finished run.")
    flags.DEFINE_string("output", None, "Path of the files, without their endings.")
    flags.DEFINE_integer(
        "images", None, "Images that the program takes at a time; any number by default.", 1
    )
    flags.adopt_module_key_flags(environment)
    flags.mark_flags_as_required(["workdir", "output"])
    environment.run(main)
