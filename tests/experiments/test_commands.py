"""What a user meets at the command line: help, and errors in one sentence."""

import pathlib
import re
import resource
import runpy
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from absl import app, flags
from ml_collections import config_dict, config_flags

from experiments import environment, evaluate, from_config, run_directory, shrink, train
from experiments.configs import digits_blind, digits_one_shot
from experiments.configs.base import base, shrinking
from prunejax import methods
from prunejax.evaluation import records

ROOT = pathlib.Path(train.__file__).parents[1]
COMMANDS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "experiments").rglob("*.py")
    if '__name__ == "__main__"' in path.read_text()
)
WITHOUT_JAX = ("experiments.prepare_data", "experiments.benchmarks.attack_tables")
CONFIG = "experiments/configs/digits_blind.py"


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs a command in this process; gives what it printed, its exit and the flags it defined."""
    app.define_help_flags()
    monkeypatch.setattr(environment, "configure", lambda cpu_devices: None)
    known = set(flags.FLAGS)

    def main_as_absl(main, argv=None, flags_parser=app.parse_flags_with_usage):
        main(flags_parser(sys.argv))

    monkeypatch.setattr(app, "run", main_as_absl)

    def run(module, *args):
        monkeypatch.setattr(sys, "argv", [module, *args])
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
            end = None
        except SystemExit as stop:
            end = stop.code
        own = {name: flags.FLAGS[name] for name in set(flags.FLAGS) - known}
        flags.FLAGS.remove_flag_values(list(own))
        flags.FLAGS.unparse_flags()
        return capsys.readouterr().out, end, own

    return run


def test_the_commands_whose_help_is_read_are_all_found():
    ours = {"train", "evaluate", "report", "shrink", "costs", "export", "quickstart"}
    assert {f"experiments.{name}" for name in ours} < set(COMMANDS)
    assert "experiments.benchmarks.throughput" in COMMANDS


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize("module", COMMANDS)
def test_help_is_complete(command, module):
    shown, _, own = command(module, "--help")
    expected = dict(own)
    if module not in WITHOUT_JAX:
        expected |= {name: flags.FLAGS[name] for name in ("cpu_devices", "distributed")}
    assert own
    words = " ".join(shown.split())
    for name, flag in expected.items():
        assert re.search(rf"^ +--(\[no\])?{name}:", shown, re.M), name
        assert len(flag.help.split()) > 2
        assert " ".join(flag.help.split()) in words, name
    # The command as it is to be typed: with flags that exist, long ones on several lines.
    examples = re.findall(rf"^ *(python -m {module} (?:.*\\\n)*.*)", shown, re.M)
    assert examples
    for example in examples:
        assert set(re.findall(r"--(\w+)", example)) <= expected.keys()
        assert not re.search(r"\S  +--", example)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_help_leads_to_the_keys_of_a_config(command):
    shown, _, _ = command("experiments.train", "--help")
    path, name = "experiments/configs/base.py", "prunejax/methods/"
    assert path in shown
    assert name in shown
    source = (ROOT / path).read_text()
    for key in digits_blind.get_config():
        assert f"config.{key}" in source


@pytest.mark.parametrize(
    ("method", "key", "given", "value"),
    [
        ("one_shot", "aggregate", "l2", "l2"),
        ("dense", "weight_decay", "0.25", 0.25),
        ("blind", "cutoff", "0.5", 0.5),
        ("iterative", "rates", "(2, 10)", (2, 10)),
    ],
)
def test_options_of_a_method_that_are_not_set_can_be_set_by_a_flag(
    monkeypatch, method, key, given, value
):
    monkeypatch.setattr(sys, "argv", ["train", f"--config.method.{key}={given}"])
    values, config = flags.FlagValues(), base("digits", "strided_cnn", method)
    config_flags.DEFINE_config_dict("config", config, flag_values=values)
    assert not config.method[key]
    values(sys.argv)
    assert config.method[key] == value


TABLE = (("Dense_0/*", 0.1), ("*", 0.5))


@pytest.mark.parametrize("method", ["one_shot", "blind"])
def test_tables_of_a_config_and_of_a_flag_keep_their_order(monkeypatch, tmp_path, method):
    given = base("digits", "lenet5", method, allocation=TABLE)
    assigned, by_flag, by_name = (base("digits", "lenet5", method) for _ in range(3))
    assigned.method.allocation = TABLE
    for config, flag in ((by_flag, repr(TABLE)), (by_name, "erk")):
        monkeypatch.setattr(sys, "argv", ["train", f"--config.method.allocation={flag}"])
        values = flags.FlagValues()
        config_flags.DEFINE_config_dict("config", config, flag_values=values)
        values(sys.argv)
    run_directory.open_run(tmp_path, given)
    stored = run_directory.read_config(tmp_path)
    for config in (given, assigned, by_flag, stored):
        assert methods.create(**config.method).allocation == TABLE
        run_directory.check_run(tmp_path, config)
    assert methods.create(**by_name.method).allocation == "erk"
    # What the first pattern says counts, though the second one matches too.
    params = {f"Dense_{number}": {"kernel": np.ones((10, 10))} for number in range(2)}
    removal = methods.create(**by_flag.method).pruner().removal(params, 0.7)
    assert removal == {("Dense_0/kernel",): 90, ("Dense_1/kernel",): 50}


def test_tables_of_channels_are_taken_too():
    assert shrinking(allocation=TABLE).allocation == TABLE


@pytest.mark.parametrize(
    ("run", "key"),
    [(train.train, "method"), (shrink.shrink, "method"), (shrink.shrink, "shrinking")],
)
def test_dicts_which_lose_their_order_are_refused(tmp_path, run, key):
    config = digits_one_shot.get_config()
    config.shrinking = shrinking()
    config[key].allocation = dict(TABLE)
    sentence = rf"^{key}\.allocation is a dict, .*write pairs, .* such as \(\('.*', 0\..*\)\)\.$"
    with pytest.raises(ValueError, match=sentence):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_bad_config_ends_in_a_sentence_and_leaves_nothing(tmp_path):
    """The whole command, once."""
    arguments = "--config", CONFIG, f"--workdir={tmp_path / 'run'}", "--config.method.sparsity=1.5"
    done = subprocess.run(
        [sys.executable, "-m", "experiments.train", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0
    assert "sparsity is 1.5; it must lie in [0, 1)." in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_a_file_that_is_no_config_is_named(command, tmp_path):
    _, end, _ = command(
        "experiments.train", "--config=experiments/configs/base.py", f"--workdir={tmp_path / 'run'}"
    )
    assert "config is 'experiments/configs/base.py', which has no get_config" in end


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize("config", [[f"--config={CONFIG}"], ["--config", CONFIG]])
@pytest.mark.parametrize(
    ("flag", "wrong", "nearest"),
    [
        ("method.sparsty", "sparsty", "sparsity"),
        ("metod.sparsity", "metod", "method"),
        ("batchsize", "batchsize", "batch_size"),
    ],
)
def test_unknown_config_keys_are_answered_with_the_valid_ones(
    command, tmp_path, config, flag, wrong, nearest
):
    _, end, _ = command(
        "experiments.train", *config, f"--workdir={tmp_path / 'run'}", f"--config.{flag}=1"
    )
    assert f"Unknown config key {wrong!r}. Did you mean {nearest!r}? Valid: " in end
    branch = digits_blind.get_config()
    if flag.startswith("method."):
        branch = branch.method
    assert end.endswith(f"Valid: {', '.join(sorted(branch.keys()))}.")
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize(
    "config", [["--config=none.py"], ["--config", "none.py"], ["--config=none.py", "--config.a=1"]]
)
def test_a_missing_config_is_named_in_a_sentence(command, tmp_path, config):
    _, end, _ = command("experiments.train", *config, f"--workdir={tmp_path / 'run'}")
    assert re.fullmatch(r"config is 'none\.py', but there is no such file; [^\n]*", end)
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_a_run_without_a_config_is_named_in_a_sentence(command, tmp_path):
    _, end, _ = command("experiments.evaluate", f"--workdir={tmp_path}")
    assert end == f"FileNotFoundError: workdir {tmp_path} holds no run: config.json is missing."


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize("module", ["experiments.costs", "experiments.report"])
def test_folders_of_one_name_are_all_looked_at(command, tmp_path, module):
    first, second = tmp_path / "seed0" / "blind", tmp_path / "seed1" / "blind"
    _, end, _ = command(module, f"--workdirs={first},{second}", f"--output={tmp_path / 'out'}")
    assert end == f"FileNotFoundError: workdir {first} holds no run: config.json is missing."


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("dataset.name", "digit", "did you mean 'digits'"),
        ("model.name", "strided", "Did you mean 'strided_cnn'?"),
        ("method.name", "blnd", "Did you mean 'blind'?"),
        ("method.criterion", "magnitud", "Did you mean 'magnitude'?"),
        ("method.eps", -0.1, r"eps is -0.1; it must lie in \[0, inf\)"),
        ("method.optimizer", "adm", "Did you mean 'adam'?"),
        ("method.pruning_schedule", "one_shot", "pruning_schedule 'one_shot'. Valid: constant_r"),
        ("method.include", ("Covn*",), r"Pattern 'Covn\*' matches none of the weights"),
        ("seed", -1, "seed is -1; it must be at least 0."),
        ("batch_size", 5000, r"batch_size is 5000; it must lie in \[1, 1197\]"),
        ("checkpoint_every", 0, "checkpoint_every is 0; it must be at least 1."),
        ("dataset.shift", -1, "dataset.shift is -1; it must be at least 0."),
        ("validation.select", "accuracy", "Unknown validation.select 'accuracy'"),
        ("validation.eps", -0.1, "validation.eps is -0.1; it must be at least 0."),
        ("validation.eps", float("nan"), "validation.eps is nan; it must be at least 0."),
        ("validation.examples", 0, "validation.examples is 0; it must be at least 1."),
        ("validation.steps", 0, "steps is 0"),
        ("evaluation.examples", 0, "evaluation.examples is 0; it must be at least 1."),
        ("evaluation.batch_size", 0, "evaluation.batch_size is 0; it must be at least 1."),
        ("evaluation.protocols.linf_pgd.attack", "sigmazero", "Did you mean 'sigma_zero'?"),
        ("evaluation.protocols.linf_pgd.stated", 0.3, "stated budget 0.3 of 'linf_pgd'"),
        ("evaluation.protocols.linf_pgd.budgets", (-0.1, 0.1), r"\(-0.1, 0.1\); none may be neg"),
    ],
)
def test_bad_values_are_refused_before_anything_is_written(tmp_path, key, value, sentence):
    config = digits_blind.get_config()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=sentence):
        train.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_bad_values_are_refused_where_a_run_is_evaluated_too(tmp_path):
    config = digits_blind.get_config()
    config.evaluation.batch_size = 0
    run_directory.open_run(tmp_path, config)
    with pytest.raises(ValueError, match=r"evaluation\.batch_size is 0"):
        evaluate.evaluate_run(tmp_path)


@pytest.mark.parametrize("name", ["one_shot", "iterative", "hydra"])
def test_what_begins_by_pruning_needs_a_trained_network(tmp_path, name):
    config = digits_one_shot.get_config()
    if name != "one_shot":
        config.method = base("digits", "strided_cnn", name).method
    with pytest.raises(ValueError, match=f"init_from is empty, and method '{name}' begins by prun"):
        train.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_no_other_method_needs_one():
    needing = {
        name
        for name, method in methods.METHODS.items()
        if method().phases(steps_per_epoch=4)[0].needs_trained
    }
    assert needing == {"one_shot", "iterative", "hydra"}


def test_no_process_is_left_without_devices(monkeypatch):
    two = jax.devices()[:1] * 2  # as many as two processes have
    monkeypatch.setattr(jax, "devices", lambda: two)
    three, four = (config_dict.ConfigDict({"batch_size": size}) for size in (3, 4))
    assert from_config.mesh(three).size == 1
    assert from_config.mesh(four).size == 2
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert from_config.mesh(four).size == 2
    with pytest.raises(ValueError, match=r"batch_size is 3; .* a multiple of all their 2 devices"):
        from_config.mesh(three)


def test_a_full_disk_ends_in_a_sentence_and_keeps_what_was_written(tmp_path):
    metrics = run_directory.Metrics(tmp_path)
    metrics.write({"epoch": 1, "step": 4, "loss": 0.5})
    before = (tmp_path / "metrics.jsonl").read_bytes()

    row = {"epoch": 2, "step": 8, "note": "long" * 2000}
    table = records.SCHEMA.empty_table()
    writes = (
        lambda: metrics.write(row),
        lambda: records.write(tmp_path / "fgsm.parquet", table, settings="long" * 2000),
    )
    # A limit on the size of files: writing fails as on a full disk.
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
    try:
        for write in writes:
            sentence = r"^OSError: .*File too large.*Make room, and the same command goes on"
            with pytest.raises(SystemExit, match=sentence), environment._errors_as_sentences():
                write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "tensorboard"}
    metrics.close()


@pytest.mark.parametrize("content", ["", '{"seed": 0, "ini', "\x00" * 9])
def test_a_damaged_config_of_a_run_is_named(tmp_path, content):
    config = digits_blind.get_config()
    path = tmp_path / "config.json"
    path.write_text(content)
    for use in (
        lambda: train.train(config, tmp_path),
        lambda: evaluate.evaluate_run(tmp_path),
    ):
        with pytest.raises(ValueError, match=f"{path} is damaged .*Remove it and start"):
            use()
    path.unlink()
    run_directory.open_run(tmp_path, config)
    assert run_directory.read_config(tmp_path).to_dict().keys() == config.to_dict().keys()


def test_damaged_metrics_are_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1}\n{"epo')
    with pytest.raises(ValueError, match=r"metrics\.jsonl is damaged .*Remove"):
        run_directory.Metrics(tmp_path)
