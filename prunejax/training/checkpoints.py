"""Checkpoints on disk: of a run under way, by Orbax, and of a finished network, packed."""

import math
import os
import pathlib
import shutil
from typing import Any, NamedTuple

import jax
from jax.experimental import multihost_utils

from prunejax import masks, packing, trees

# Beside the checkpoints: the number of the newest one, so that its loss is noticed.
NEWEST = "newest"
# The one file of a finished network's folder.
PACKED = "packed.safetensors"


class CheckpointError(RuntimeError):
    """A checkpoint that is missing or cannot be read."""


class Position(NamedTuple):
    """How far a run has come.

    Attributes:
      phase: number of the phase.
      epoch: epochs of that phase that are done.
      best_value: validation metric of the best network so far; -inf where none may be chosen yet.
      checkpoint: number of the checkpoint on disk.
    """

    phase: int
    epoch: int
    best_value: float
    checkpoint: int | None = None


class Store:
    """The last two checkpoints of a run. A save that is cut short leaves the earlier ones alone."""

    def __init__(self, directory: str | pathlib.Path, *, fall_back: bool = False):
        """Opens or creates the folder.

        Args:
          directory: where the checkpoints are.
          fall_back: where the newest checkpoint is missing or cannot be read, drop it and use the
            one before.
        """
        import orbax.checkpoint as ocp  # takes a second to import

        self._ocp = ocp
        self._directory = pathlib.Path(directory).absolute()
        self._fall_back = fall_back
        self._directory.mkdir(parents=True, exist_ok=True)
        self._manager = ocp.CheckpointManager(
            self._directory,
            item_names=("state", "position"),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=2, enable_async_checkpointing=False, cleanup_tmp_directories=True
            ),
        )

    def save(self, checkpoint: int, position: Position, tree: Any) -> None:
        """Writes checkpoint number `checkpoint`, then drops all but the last two.

        Raises:
          CheckpointError: it cannot be written; earlier ones are untouched.
        """
        args = self._ocp.args
        content = args.Composite(
            state=args.StandardSave(tree),
            # JSON knows no infinity.
            position=args.JsonSave(
                {
                    "phase": position.phase,
                    "epoch": position.epoch,
                    "best_value": _finite_or_none(position.best_value),
                }
            ),
        )
        try:
            self._manager.save(checkpoint, args=content)
            # Cut short before this, the number is older than what is there, which does no harm.
            self._note_newest(checkpoint)
        except Exception as error:
            raise CheckpointError(
                f"Checkpoint {checkpoint} could not be written to {self._directory} ({error}). "
                "Those before it are intact; make room, and the same command goes on from there."
            ) from error

    def latest(self) -> Position | None:
        """Where the newest readable checkpoint stands, None where there is none.

        Raises:
          CheckpointError: the newest one is missing or cannot be read, and falling back was not
            asked for.
        """
        found = sorted(self._manager.all_steps(), reverse=True)
        newest = self._noted_newest()
        if newest is not None and newest > max(found, default=-1) and not self._fall_back:
            raise self._unusable(newest, "is missing")
        for checkpoint in found:
            try:
                args = self._ocp.args.Composite(
                    state=self._ocp.args.StandardRestore(), position=self._ocp.args.JsonRestore()
                )
                # The arrays too: a position whose state is damaged is of no use.
                position = self._manager.restore(checkpoint, args=args).position
            except Exception as error:
                if not self._fall_back:
                    raise self._unusable(checkpoint) from error
                self._drop(checkpoint)
            else:
                if checkpoint != newest:
                    self._note_newest(checkpoint)
                value = -math.inf if position["best_value"] is None else position["best_value"]
                return Position(position["phase"], position["epoch"], value, checkpoint)
        self._note_newest(None)
        return None

    def restore(self, position: Position, template: Any) -> Any:
        """The tree saved at `position`, in the structure and shapes of `template`.

        Raises:
          CheckpointError: it cannot be read, or holds another structure.
        """
        args = self._ocp.args.Composite(state=self._ocp.args.StandardRestore(template))
        try:
            return self._manager.restore(position.checkpoint, args=args).state
        except Exception as error:
            raise self._unusable(position.checkpoint) from error

    def close(self) -> None:
        """Waits for what is being written."""
        self._manager.close()

    def _drop(self, checkpoint: int) -> None:
        _wait_for_all(f"have looked at checkpoint {checkpoint}")
        if jax.process_index() == 0:
            shutil.rmtree(self._directory / str(checkpoint))
        _wait_for_all(f"know that checkpoint {checkpoint} is gone")
        self._manager.reload()

    def _noted_newest(self) -> int | None:
        path = self._directory / NEWEST
        try:
            return int(path.read_text())
        except FileNotFoundError:
            return None
        except ValueError as error:
            if self._fall_back:
                return None
            raise CheckpointError(
                f"{path}, which holds the number of the newest checkpoint, is damaged. "
                "Remove it to go on from the newest one that is left."
            ) from error

    def _note_newest(self, checkpoint: int | None) -> None:
        if jax.process_index() != 0:
            return
        path = self._directory / NEWEST
        if checkpoint is None:
            path.unlink(missing_ok=True)
            return
        unfinished = path.with_suffix(".tmp")
        unfinished.write_text(f"{checkpoint}\n")
        os.replace(unfinished, path)

    def _unusable(
        self, checkpoint: int, what: str = "is damaged or of another run"
    ) -> CheckpointError:
        return CheckpointError(
            f"Checkpoint {self._directory / str(checkpoint)} {what}. "
            "To go on from the one before it, or from the start where there is none, ask to fall "
            f"back (--fall_back); to start anew, remove {self._directory}."
        )


def save_network(directory: str | pathlib.Path, variables: Any, mask: Any) -> None:
    """Writes a finished network: of each leaf the numbers that its mask keeps, and the mask.

    Args:
      directory: replaced where it exists, once all is written.
      variables: `{"params": ..., ...}`.
      mask: of the params.
    """
    directory = pathlib.Path(directory)
    if jax.process_index() == 0:
        content = packing.serialized(variables, masks.of_variables(variables, mask))
        unfinished = directory.with_name(f"{directory.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        (unfinished / PACKED).write_bytes(content)
        shutil.rmtree(directory, ignore_errors=True)
        unfinished.rename(directory)
    _wait_for_all(f"know that {directory} is written")


def load_network(directory: str | pathlib.Path, template: Any) -> tuple[Any, Any]:
    """Variables and mask of a finished network.

    Args:
      directory: where `save_network` wrote it.
      template: variables of the same structure; only shapes and dtypes are looked at.

    Raises:
      CheckpointError: nothing there, or it does not fit.
    """
    directory = pathlib.Path(directory)
    if not directory.is_dir():
        raise CheckpointError(f"No network at {directory}; train it first (experiments.train).")
    try:
        variables, mask = packing.load(directory / PACKED, template)
        found = trees.flatten(variables)
        for path, leaf in trees.flatten(template).items():
            if (found[path].shape, found[path].dtype) != (leaf.shape, leaf.dtype):
                raise ValueError(f"{path!r} is no {leaf.dtype}{list(leaf.shape)}.")
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"Network {directory} is damaged, or is not the network that the config describes, or "
            "an earlier version of this library wrote it. Remove that folder, and the run's "
            "experiments.train makes it again from the last checkpoint."
        ) from error
    return jax.tree.map(jax.numpy.asarray, variables), mask["params"]


def _wait_for_all(what: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"all processes {what}")


def _finite_or_none(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
