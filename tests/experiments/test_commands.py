"""What a user meets at the command line: help, and errors in one sentence."""

import subprocess
import sys

import pytest

from experiments import train
from experiments.configs import digits_blind

TRAIN = ("experiments.train", "--config=experiments/configs/digits_blind.py")


def _run(module, *args):
    return subprocess.run(
        [sys.executable, "-m", module, *args], capture_output=True, text=True, timeout=120
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ("--config.method.sparsty=0.5", "Did you mean 'sparsity'?"),
        ("--config.method.sparsity=1.5", "sparsity is 1.5; it must lie in [0, 1)."),
    ],
)
def test_bad_configs_end_in_a_sentence_and_leave_nothing(tmp_path, flag, sentence):
    done = _run(*TRAIN, f"--workdir={tmp_path / 'run'}", flag)
    assert done.returncode != 0
    assert sentence in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("experiments.train", ["--config", "--workdir", "fall_back", "cpu_devices"]),
        ("experiments.evaluate", ["--workdir", "--attacks", "cpu_devices"]),
    ],
)
def test_help_names_every_flag(module, words):
    shown = _run(module, "--help").stdout
    assert f"python -m {module}" in shown
    for word in words:
        assert word in shown


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("dataset.name", "digit", "did you mean 'digits'"),
        ("model.name", "strided", "Did you mean 'strided_cnn'?"),
        ("method.name", "blnd", "Did you mean 'blind'?"),
        ("method.criterion", "magnitud", "Did you mean 'magnitude'?"),
        ("method.eps", -0.1, "eps is -0.1; a budget is at least 0."),
        ("method.optimizer", "adm", "Did you mean 'adam'?"),
        ("method.include", ("Covn*",), r"Pattern 'Covn\*' matches none of the weights"),
        ("batch_size", 5000, r"batch_size is 5000; it must lie in \[1, 1197\]"),
        ("validation.select", "accuracy", "Unknown validation.select 'accuracy'"),
        ("evaluation.protocols.linf_pgd.attack", "sigmazero", "Did you mean 'sigma_zero'?"),
        ("evaluation.protocols.linf_pgd.stated", 0.3, "stated budget 0.3 of 'linf_pgd'"),
    ],
)
def test_bad_values_are_refused_before_anything_is_written(tmp_path, key, value, sentence):
    config = digits_blind.get_config()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=sentence):
        train.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
