"""A run small enough to repeat in a subprocess: `python tests/training/toy.py DIRECTORY [KILL]`.

KILL makes the process kill itself: "after-save" when the second checkpoint of this process is
complete, "mkdir" or "rename" at the first such call of the operating system within that save.
With --process=I,COUNT,PORT the process is one of COUNT that train together.
"""

import os
import pathlib
import signal
import sys

import numpy as np


def dataset(number=64, seed=0):
    from prunejax.data import Dataset

    draw = np.random.default_rng(seed)
    labels = np.arange(number, dtype=np.int32) % 3
    images = draw.integers(0, 120, (number, 4, 4, 1)).astype(np.uint8)
    images[np.arange(number), labels, labels] += 130
    return Dataset(images, labels, ("a", "b", "c"), "toy", "train")


def run(directory, **options):
    """Trains in two phases, the second of which prunes gradually; returns the flat parameters."""
    import jax

    from prunejax import masks, methods, models, training, trees
    from prunejax.classifier import Network

    network = Network(models.create("mlp", 3, widths=(8,)))
    variables = network.init(jax.random.key(0), (4, 4, 1))
    common = {"eps": 0.05, "attack_steps": 2, "learning_rate": 0.01}
    phases = [
        *methods.create("dense", epochs=2, **common).phases(4),
        *methods.create(
            "gradual_adversarial", epochs=4, pruning_epochs=2, mask_frequency=3, **common
        ).phases(4),
    ]
    store = training.checkpoints.Store(directory) if directory else None
    trained = training.train(
        network,
        training.Trained(variables, masks.dense(variables["params"])),
        phases,
        dataset(),
        batch_size=16,
        shift=1,
        store=store,
        **options,
    )
    if store:
        store.close()
    params = {path: np.asarray(leaf) for path, leaf in trees.flatten(trained.variables).items()}
    kept = {f"mask/{path}": np.asarray(m) for path, m in trees.flatten(trained.mask).items()}
    return params | kept


def _kill_self():
    os.kill(os.getpid(), signal.SIGKILL)


def _arm(when):
    from prunejax.training import checkpoints

    saves = []
    save = checkpoints.Store.save

    def counted(self, *args):
        saves.append(True)
        save(self, *args)
        if when == "after-save" and len(saves) == 2:
            _kill_self()
        saves.append(None) if len(saves) > 2 else None

    def hook(event, args):
        if event == f"os.{when}" and len(saves) == 2:
            _kill_self()

    checkpoints.Store.save = counted
    sys.addaudithook(hook)


def main(directory, *rest):
    """Runs the command."""
    sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
    from experiments import environment

    process = [r.partition("=")[2].split(",") for r in rest if r.startswith("--process=")]
    environment.configure(cpu_devices=1 if process else 2)
    if process:
        import jax

        number, count, port = map(int, process[0])
        jax.distributed.initialize(f"localhost:{port}", count, number)
    for when in rest:
        if not when.startswith("--"):
            _arm(when)
    result = run(pathlib.Path(directory) / "checkpoints")
    if not process or process[0][0] == "0":
        np.savez(pathlib.Path(directory) / "result.npz", **result)


if __name__ == "__main__":
    main(*sys.argv[1:])
