"""Folders of runs: how they are told apart, and files in them that are damaged."""

import pathlib

import pytest

from experiments import from_config, run_directory, sensitivity, shrink
from experiments.configs import digits_shrink


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["runs/dense", "/runs/blind/"], ["dense", "blind"]),
        (
            ["runs/seed0/blind", "runs/seed1/blind", "runs/seed1/dense"],
            ["seed0/blind", "seed1/blind", "dense"],
        ),
        (
            ["/a/seed0/blind", "/b/seed0/blind", "/b/seed1/blind"],
            ["a/seed0/blind", "b/seed0/blind", "seed1/blind"],
        ),
        ([".", "..", "x/.."], None),
        ([".", "../runs"], None),
        (["x", "..", "."], ["x", "home", "runs"]),
    ],
    ids=str,
)
def test_as_much_of_a_path_is_shown_as_tells_it_apart(tmp_path, monkeypatch, paths, names):
    (tmp_path / "home" / "runs").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "home" / "runs")
    paths = [pathlib.Path(path) for path in paths]
    if names is None:
        with pytest.raises(ValueError, match="name each folder once"):
            run_directory.by_name(paths)
    else:
        found = run_directory.by_name(paths)
        assert list(found.items()) == list(zip(names, paths, strict=True))


def test_damaged_files_of_a_run_are_named(tmp_path):
    config = digits_shrink.get_config()
    config.init_from = "a run"
    run_directory.open_run(tmp_path, config)
    for name, read in (
        ("rounds.json", lambda: shrink.shrink(config, tmp_path)),
        ("structure.json", lambda: from_config.load_shrunk(tmp_path, None, (8, 8, 1))),
        ("sensitivity.json", lambda: sensitivity.densities(config, tmp_path, None, None, None)),
    ):
        (tmp_path / name).write_text('[{"round"')
        with pytest.raises(ValueError, match=rf"{tmp_path / name} is damaged \(.*\)\. Remove"):
            read()
        (tmp_path / name).unlink()
