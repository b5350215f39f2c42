"""The folder of one run: its config, and what is measured on the way.

config.json  checkpoints/  network/  metrics.jsonl  tensorboard/  records/*.parquet
summary.json  report/index.html
"""

import json
import os
import pathlib
from typing import Any

import ml_collections
from ml_collections import config_dict


class ConfigMismatchError(ValueError):
    """The folder holds a run of another config."""


def open_run(directory: pathlib.Path, config: ml_collections.ConfigDict) -> None:
    """Makes the folder and writes the config; checks that it is the same where there is one.

    Raises:
      ConfigMismatchError: the folder holds a run of another config; names the differing keys.
    """
    path = directory / "config.json"
    wanted = json.loads(config.to_json_best_effort())
    if path.exists():
        before, now = _flat(json.loads(path.read_text())), _flat(wanted)
        differing = [
            f"{key}: {before.get(key, 'absent')!r} there, {now.get(key, 'absent')!r} here"
            for key in sorted(before.keys() | now.keys())
            if before.get(key, "absent") != now.get(key, "absent")
        ]
        if differing:
            raise ConfigMismatchError(
                f"workdir {directory} holds a run of another config ({'; '.join(differing)}). "
                "Use another workdir, or remove this one."
            )
        return
    directory.mkdir(parents=True, exist_ok=True)
    write_json(path, wanted)


def read_config(directory: pathlib.Path) -> ml_collections.ConfigDict:
    """The config of a run.

    Raises:
      FileNotFoundError: there is none.
    """
    path = directory / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"workdir {directory} holds no run: {path.name} is missing.")
    return config_dict.ConfigDict(json.loads(path.read_text()))


def write_json(path: pathlib.Path, content: Any) -> None:
    """Writes a JSON file; whoever looks sees the old one or the new one, never half of one."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: pathlib.Path, content: str) -> None:
    """Likewise for any text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    unfinished.write_text(content)
    os.replace(unfinished, path)


class Metrics:
    """Rows of numbers by epoch, to `metrics.jsonl` and to TensorBoard event files.

    A run that was killed repeats the epochs since its last checkpoint: a row replaces those of the
    same and later epochs.
    """

    def __init__(self, directory: pathlib.Path):
        """Opens the files of the run in `directory`, which need not exist yet."""
        from tensorboardX import SummaryWriter

        self._path = directory / "metrics.jsonl"
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        self._rows = [json.loads(line) for line in lines]
        self._writer = SummaryWriter(os.fspath(directory / "tensorboard"))

    def write(self, row: dict[str, Any]) -> None:
        """Adds the row of an epoch."""
        self._rows = [r for r in self._rows if r["epoch"] < row["epoch"]] + [row]
        write_text(self._path, "".join(json.dumps(r) + "\n" for r in self._rows))
        for name, value in row.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(name, value, row["step"])

    def close(self) -> None:
        """Flushes the event files."""
        self._writer.close()


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {
        key: value
        for name, branch in tree.items()
        for key, value in _flat(branch, f"{prefix}.{name}" if prefix else name).items()
    }
