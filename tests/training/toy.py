"""A run small enough to repeat in a subprocess: `python tests/training/toy.py DIRECTORY [KILL]`.

KILL makes the process kill itself: "mid-epoch" two steps into the sixth epoch, two epochs after a
save; "mkdir" or "rename" at the first such call of the operating system within the second save of
this process.
"""

import os
import pathlib
import signal
import sys
from unittest import mock

import numpy as np


def dataset(number=64, seed=0):
    from prunejax.data import Dataset

    draw = np.random.default_rng(seed)
    labels = np.arange(number, dtype=np.int32) % 3
    images = draw.integers(0, 120, (number, 4, 4, 1)).astype(np.uint8)
    images[np.arange(number), labels, labels] += 130
    return Dataset(images, labels, ("a", "b", "c"), "toy", "train")


def run(directory, **options):
    """Trains in two phases, the second of which prunes gradually; returns flat parameters.

    Checkpoints are two epochs apart. The largest network wins, which is an early one: `best` is
    older than the state beside it. What training ended with is under "last/".
    """
    import jax

    from prunejax import masks, methods, models, training, trees
    from prunejax.classifier import Network

    network = Network(models.create("mlp", 3, widths=(8,)))
    variables = network.init(jax.random.key(0), (4, 4, 1))
    common = {"eps": 0.05, "attack_steps": 2, "learning_rate": 0.01}
    phases = [
        *methods.create("dense", epochs=2, **common).phases(4),
        *methods.create(
            "gradual_adversarial", epochs=8, pruning_epochs=2, mask_frequency=3, **common
        ).phases(4),
    ]
    flat = lambda prefix, tree: {  # noqa: E731
        prefix + path: np.asarray(leaf) for path, leaf in trees.flatten(tree).items()
    }
    last = {}

    def validate(classifier):
        last.update(flat("last/", classifier.variables))
        return {"size": float(sum(np.abs(leaf).sum(dtype=np.float64) for leaf in last.values()))}

    store = training.checkpoints.Store(directory) if directory else None
    # Two of an epoch's four steps at a time.
    with mock.patch.object(training.loop, "CHUNK_BYTES", 2 * 16 * 4 * 4):
        trained = training.train(
            network,
            training.Trained(variables, masks.dense(variables["params"])),
            phases,
            dataset(),
            batch_size=16,
            shift=1,
            validate=validate,
            select="size",
            store=store,
            checkpoint_every=2,
            **options,
        )
    if store:
        store.close()
    return flat("", trained.variables) | flat("mask/", trained.mask) | last


def _kill_self():
    os.kill(os.getpid(), signal.SIGKILL)


def _arm(when):
    from prunejax.training import checkpoints

    begun, ended = [], []
    save = checkpoints.Store.save

    def counted(self, *args):
        begun.append(True)
        save(self, *args)
        ended.append(True)

    def hook(event, args):
        if event == f"os.{when}" and (len(begun), len(ended)) == (2, 1):
            _kill_self()

    checkpoints.Store.save = counted
    sys.addaudithook(hook)


def _kill_in_mid_epoch(done, total):
    if done == 22:
        _kill_self()


def main(directory, *rest):
    """Runs the command."""
    sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
    from experiments import environment, run_directory

    environment.configure(cpu_devices=2)
    options = {}
    if "mid-epoch" in rest:
        options["progress"] = _kill_in_mid_epoch
    elif rest:
        _arm(rest[0])
    metrics = run_directory.Metrics(pathlib.Path(directory))
    result = run(pathlib.Path(directory) / "checkpoints", log=metrics.write, **options)
    metrics.close()
    np.savez(pathlib.Path(directory) / "result.npz", **result)


if __name__ == "__main__":
    main(*sys.argv[1:])
