"""The folder of one run: its config, and what is measured on the way.

config.json  checkpoints/  network/  metrics.jsonl  tensorboard/  records/*.parquet
summary.json  report/index.html
"""

import json
import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
from ml_collections import config_dict


class ConfigMismatchError(ValueError):
    """The folder holds a run of another config."""


def check_run(directory: pathlib.Path, config: ml_collections.ConfigDict) -> None:
    """Checks that a folder which holds a run holds one of this config.

    Raises:
      ConfigMismatchError: the folder holds a run of another config; names the differing keys.
      ValueError: its config is damaged.
    """
    path = directory / "config.json"
    if not path.exists():
        return
    differing = [
        f"{key}: {there!r} there, {here!r} here"
        for key, (there, here) in differences(_config_in(path), _as_json(config)).items()
    ]
    if differing:
        raise ConfigMismatchError(
            f"workdir {directory} holds a run of another config ({'; '.join(differing)}). "
            "Use another workdir, or remove this one."
        )


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Both values of each key that differs in two nested dicts, such as "dataset.name"."""
    one, other = _flat(one), _flat(other)
    values = {
        key: (one.get(key, "absent"), other.get(key, "absent"))
        for key in sorted(one.keys() | other.keys())
    }
    return {key: (first, second) for key, (first, second) in values.items() if first != second}


def by_name(directories: Sequence[pathlib.Path]) -> dict[str, pathlib.Path]:
    """Folders by their names, or by as much of their paths as tells those of one name apart.

    Raises:
      ValueError: a folder that is given twice.
    """
    paths = [pathlib.Path(os.path.abspath(directory)) for directory in directories]
    if len(set(paths)) < len(paths):
        raise ValueError(f"workdirs is {', '.join(map(str, directories))}; name each folder once.")

    def ends(length):
        return [path.parts[-length:] for path in paths]

    def name(path):
        lengths = range(1, len(path.parts) + 1)
        shortest = next(n for n in lengths if ends(n).count(path.parts[-n:]) == 1)
        return "/".join(path.parts[-shortest:])

    return dict(zip(map(name, paths), directories, strict=True))


def open_run(directory: pathlib.Path, config: ml_collections.ConfigDict) -> None:
    """Makes the folder and writes the config, where there is none; raises what `check_run` does."""
    check_run(directory, config)
    path = directory / "config.json"
    if not path.exists():
        write_json(path, _as_json(config))


def read_config(directory: pathlib.Path) -> ml_collections.ConfigDict:
    """The config of a run.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is damaged.
    """
    path = directory / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"workdir {directory} holds no run: {path.name} is missing.")
    return config_dict.ConfigDict(_config_in(path))


def read_json(path: pathlib.Path, remedy: str) -> Any:
    """The content of a JSON file.

    Raises:
      ValueError: it is damaged; ends with what to do, the sentence `remedy`.
    """
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}). {remedy}") from error


def write_json(path: pathlib.Path, content: Any) -> None:
    """Writes a JSON file; whoever looks sees the old one or the new one, never half of one."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: pathlib.Path, content: str) -> None:
    """Likewise for any text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        unfinished.write_text(content)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


class Metrics:
    """Rows of numbers by epoch, to `metrics.jsonl` and to TensorBoard event files.

    A run that was killed repeats the epochs since its last checkpoint: a row replaces those of the
    same and later epochs, in TensorBoard too. What was written before a kill stays.
    """

    def __init__(self, directory: pathlib.Path):
        """Reads the rows of the run in `directory`, which need not exist yet.

        Raises:
          ValueError: they are damaged.
        """
        self._path = directory / "metrics.jsonl"
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        try:
            self._rows = [json.loads(line) for line in lines]
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{self._path} is damaged ({error}). Remove its bad lines, or all of it: "
                "nothing is computed from it."
            ) from error
        self._events = None

    def write(self, row: dict[str, Any]) -> None:
        """Adds the row of an epoch."""
        self._rows = [r for r in self._rows if r["epoch"] < row["epoch"]] + [row]
        write_text(self._path, "".join(json.dumps(r) + "\n" for r in self._rows))
        self._write_events(row)

    def close(self) -> None:
        """Closes the event file."""
        if self._events:
            self._events.close()

    def _write_events(self, row: dict[str, Any]) -> None:
        # Not by SummaryWriter: its thread writes later, and waits for ever where the disk is full.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary

        now = time.time()
        if self._events is None:
            folder = self._path.parent / "tensorboard"
            folder.mkdir(parents=True, exist_ok=True)
            # Seconds alone would let two files have one name.
            self._events = EventsWriter(os.fspath(folder / "events"), f".{time.time_ns()}")
            # TensorBoard then drops what earlier files have of this step and later ones.
            start = SessionLog(status=SessionLog.START)
            self._events.write_event(Event(wall_time=now, step=row["step"], session_log=start))
        scalars = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in row.items()
            if isinstance(value, int | float)
        ]
        summary = Summary(value=scalars)
        self._events.write_event(Event(wall_time=now, step=row["step"], summary=summary))
        self._events.flush()


def _as_json(config: ml_collections.ConfigDict) -> dict[str, Any]:
    return json.loads(config.to_json_best_effort())


def _config_in(path: pathlib.Path) -> dict[str, Any]:
    return read_json(
        path,
        "Remove it and start experiments.train with the config of the run, which writes it anew.",
    )


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    return {
        key: value
        for name, branch in tree.items()
        for key, value in _flat(branch, f"{prefix}.{name}" if prefix else name).items()
    }
