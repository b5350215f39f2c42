"""The whole walk on real images, with no network needed: five networks, one table.

    python -m experiments.quickstart [--workdir=runs/quickstart]

Trains a small convolutional network adversarially on scikit-learn's digits, prunes it to 90 %
along four routes, attacks all five in three norms, and shows what is left. Stopped and started
again, it goes on where it was.
"""

import pathlib

from absl import flags
from rich.console import Console

from experiments import environment, evaluate, progress, report, train
from experiments.configs import (
    digits_blind,
    digits_dense,
    digits_gradual_adversarial,
    digits_gradual_natural,
    digits_one_shot,
)

ROUTES = {
    "dense": digits_dense,
    "one_shot": digits_one_shot,
    "gradual_natural": digits_gradual_natural,
    "gradual_adversarial": digits_gradual_adversarial,
    "blind": digits_blind,
}


def quickstart(workdir: pathlib.Path, *, epochs: int | None = None, examples: int | None = None):
    """Trains, prunes, attacks and reports; returns the table."""
    with progress.bars() as show:
        for name, module in ROUTES.items():
            config = module.get_config()
            if name == "one_shot":
                config.init_from = str(workdir / "dense")
            if epochs is not None:
                config.method.epochs = epochs
                if "pruning_epochs" in config.method:
                    config.method.pruning_epochs = epochs // 2
            if examples is not None:
                config.evaluation.examples = examples
            train.train(config, workdir / name, report=show)
            evaluate.evaluate_run(workdir / name, report=show)
        folders = {name: workdir / name for name in ROUTES}
        return report.write_report(folders, workdir / "report", report=show)


def main() -> None:
    """Runs the command."""
    workdir = pathlib.Path(flags.FLAGS.workdir)
    console = Console()
    console.print(quickstart(workdir, epochs=flags.FLAGS.epochs, examples=flags.FLAGS.examples))
    console.print(f"Curves: {workdir / 'report' / 'security_curves.png'} (and .pdf)")
    console.print(f"Report: {workdir / 'report' / 'index.html'}")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", "runs/quickstart", "Folder for the runs and the report.")
    flags.DEFINE_integer("epochs", None, "Epochs of each network; by default the configs'.")
    flags.DEFINE_integer("examples", None, "Attacked images; by default the configs'.")
    flags.adopt_module_key_flags(environment)
    environment.run(main)
