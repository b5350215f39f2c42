"""The command that makes a network smaller: to its target, resumable, evaluated like any run."""

import collections
import itertools
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import evaluate, from_config, run_directory, shrink, train
from experiments.configs import digits_dense
from experiments.configs.base import base, protocol, shrinking
from prunejax import data, evaluation, masks, training, trees
from prunejax.training import checkpoints
from tests.experiments import untrained


def config_of(**changed):
    config = digits_dense.get_config()
    config.model.name = "mlp"
    config.model.options.widths = (16, 8)
    config.method.epochs = 1
    config.method.adversarial = False
    config.validation.steps = 1
    config.validation.examples = 50
    config.evaluation.examples = 40
    del config.evaluation.protocols
    config.evaluation.protocols = {"fgsm": protocol("fgsm", (0.0, 0.1), 0.1)}
    config.update(changed)
    return config


@pytest.fixture(scope="module")
def reported():
    """What `runs` says of its progress: a list of (done, in all) by task."""
    return collections.defaultdict(list)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, reported):
    folder = tmp_path_factory.mktemp("shrink")
    report = lambda task, *call: reported[task].append(call)  # noqa: E731
    train.train(config_of(), folder / "dense", report=report)
    config = config_of(init_from=str(folder / "dense"))
    config.shrinking = shrinking(
        share=0.3, at_most=0.5, criterion="taylor", allocation="uniform", batch_size=8, examples=32
    )
    rows = shrink.shrink(config, folder / "small", report=report)
    return folder, config, rows


@pytest.mark.exhaustive
def test_progress_of_everything_that_takes_long_begins_at_nothing_and_ends_at_all(runs, reported):
    rounds = {f"round {number}" for number in range(1, len(runs[2]))}
    assert set(reported) == rounds | {
        "train dense", "save dense", "validate dense", "choose channels", "validate", "time a batch"
    }  # fmt: skip
    for calls in reported.values():
        done, (total, *others) = zip(*calls, strict=True)
        assert set(others) == {total}
        assert done[0] == 0
        assert done[-1] == total
        # It may begin again, but only where it had ended.
        for before, after in itertools.pairwise(done):
            assert before <= after or (before, after) == (total, 0)


def test_rounds_go_on_until_half_of_the_work_is_left(runs):
    _, _, rows = runs
    flops = [row["flops"] for row in rows]
    assert flops == sorted(flops, reverse=True)
    assert flops[-1] <= 0.5 * flops[0] < flops[-2]
    # 64 inputs; of 16 and 8 units a third goes each round, rounded.
    assert flops[0] == 2 * (64 * 16 + 16 * 8 + 8 * 10)
    assert flops[1] == 2 * (64 * 11 + 11 * 6 + 6 * 10)
    for before, after in itertools.pairwise(rows):
        gone = before["parameters"] - after["parameters"]
        assert before["peak_memory"] - after["peak_memory"] >= 4 * gone > 0


def test_a_finished_run_is_left_alone(runs, tmp_path, monkeypatch):
    folder, config, rows = runs
    shutil.copytree(folder / "small", tmp_path / "small")
    config = config.copy_and_resolve_references()
    config.shrinking.target = "latency"
    (tmp_path / "small" / "config.json").unlink()
    # On a slower machine, where its last network takes longer than it may.
    monkeypatch.setattr(shrink, "costs", lambda *args: {"latency": np.inf})
    assert shrink.shrink(config, tmp_path / "small") == rows


def test_a_run_that_was_stopped_goes_on_after_its_last_round(runs):
    folder, config, rows = runs
    before = from_config.load_trained(config, folder / "small", data.load("digits", "test"))[0]
    again = folder / "again"
    run_directory.open_run(again, config)
    (again / "rounds").mkdir()
    (folder / "small" / "rounds" / "1").rename(again / "rounds" / "1")
    (again / "rounds.json").write_text(json.dumps(rows[:2]))

    resumed = shrink.shrink(config, again)

    assert [row["flops"] for row in resumed] == [row["flops"] for row in rows]
    after = from_config.load_trained(config, again, data.load("digits", "test"))[0]
    for path, leaf in trees.flatten(before.variables).items():
        np.testing.assert_array_equal(leaf, trees.flatten(after.variables)[path])


def test_a_damaged_network_is_made_again_from_the_last_checkpoint(runs, tmp_path):
    """A run of experiments.train; it is here because there is one."""
    shutil.copytree(runs[0] / "dense", tmp_path / "dense")
    classifier = train.train(config_of(), tmp_path / "dense")
    for path in (tmp_path / "dense" / "network").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(checkpoints.CheckpointError, match=r"dense/network is damaged.* Remove"):
        train.train(config_of(), tmp_path / "dense")
    shutil.rmtree(tmp_path / "dense" / "network")
    metrics = (tmp_path / "dense" / "metrics.jsonl").read_text()
    again = train.train(config_of(), tmp_path / "dense")
    for path, leaf in trees.flatten(classifier.variables).items():
        np.testing.assert_array_equal(leaf, trees.flatten(again.variables)[path])
    assert (tmp_path / "dense" / "network").is_dir()
    assert (tmp_path / "dense" / "metrics.jsonl").read_text() == metrics  # nothing is trained


def test_the_smaller_network_is_evaluated_like_any_run(runs):
    folder, _, rows = runs
    summary = evaluate.evaluate_run(folder / "small")
    assert summary["parameters"] == rows[-1]["parameters"]
    assert [row["attack"] for row in summary["robust_accuracy"]] == ["fgsm"]
    assert summary["real_density"] == 1.0


def two_thirds(params):
    """A mask without every third weight."""
    return trees.map_with_path(
        lambda _, w: jnp.arange(w.size).reshape(w.shape) % 3 > 0 if w.ndim > 1 else jnp.array(True),
        params,
    )


def columns_left(kernel, number):
    """Those with the largest sums of |w|, in order."""
    return np.sort(np.argsort(np.abs(kernel).sum(axis=0))[-number:])


@pytest.mark.parametrize(
    "method", ["dense", pytest.param("one_shot", marks=pytest.mark.exhaustive)]
)
def test_fine_tuning_revives_nothing_that_was_pruned_before(tmp_path, monkeypatch, method):
    config = config_of(init_from=str(tmp_path / "pruned"), batch_size=400)
    config.model.options.widths = (8,)
    start = untrained.write(tmp_path / "pruned", config, two_thirds)["params"]
    if method == "one_shot":  # it prunes more
        config.method = base("digits", "mlp", method, epochs=1, adversarial=False).method
        config.method.sparsity = 0.5
    config.shrinking = shrinking(share=0.3, at_most=0.8, batch_size=4)
    trained, train_it = [], training.train

    def kept_in_sight(*args, **kwargs):
        trained.append(train_it(*args, **kwargs))
        return trained[-1]

    monkeypatch.setattr(training, "train", kept_in_sight)
    shrink.shrink(config, tmp_path / "small")

    (after,) = trained  # what is written has zeros outside its mask in any case
    digits = data.load("digits", "test")
    classifier, mask = from_config.load_trained(config, tmp_path / "small", digits)
    for path, leaf in trees.flatten(classifier.variables).items():
        np.testing.assert_array_equal(leaf, trees.flatten(after.variables)[path])
    first, last = (start[name]["kernel"] for name in ("Dense_0", "Dense_1"))
    units = columns_left(first, 6)  # of 8 units round(0.3 * 8) go
    pruned = two_thirds(start)
    allowed = pruned["Dense_0"]["kernel"][:, units], pruned["Dense_1"]["kernel"][units]
    found = [(classifier.params[n]["kernel"], mask[n]["kernel"]) for n in ("Dense_0", "Dense_1")]
    for (kernel, keep), before, may in zip(
        found, (first[:, units], last[units]), allowed, strict=True
    ):
        np.testing.assert_array_equal(kernel != 0, keep)
        assert not (keep & ~may).any()
        assert (kernel != before)[np.asarray(keep)].mean() > 0.5  # it was trained
    kept = sum(int(keep.sum()) for _, keep in found)
    if method == "dense":
        assert kept == sum(int(may.sum()) for may in allowed)
    else:
        assert kept == 74 * 6 - round(0.5 * 74 * 6)


@pytest.mark.exhaustive
def test_a_run_that_goes_on_keeps_its_mask(tmp_path, untrained_run):
    config = config_of()
    config.model.options.widths = (8,)
    start = untrained_run(config, two_thirds)["params"]
    config.shrinking = shrinking(share=0.3, at_most=0.8, batch_size=4)
    shrink.shrink(config, tmp_path / "small")  # ends after a round
    config.shrinking.at_most = 0.5
    for name in ("config.json", from_config.STRUCTURE):  # the latter says that it is finished
        (tmp_path / "small" / name).unlink()
    shrink.shrink(config, tmp_path / "small")

    digits = data.load("digits", "test")
    _, mask = from_config.load_trained(config, tmp_path / "small", digits)
    units = columns_left(start["Dense_0"]["kernel"], 4)
    pruned = two_thirds(start)
    np.testing.assert_array_equal(mask["Dense_0"]["kernel"], pruned["Dense_0"]["kernel"][:, units])
    np.testing.assert_array_equal(mask["Dense_1"]["kernel"], pruned["Dense_1"]["kernel"][units])


def test_the_channels_that_a_run_s_own_mask_removes_are_gone_after_a_round(
    runs, tmp_path, monkeypatch
):
    config, digits = config_of(init_from=str(tmp_path / "pruned")), data.load("digits", "test")
    dense = from_config.load_trained(config, runs[0] / "dense", digits)[0].variables
    layers = [dense["params"][f"Dense_{n}"] for n in range(3)]
    # Trained biases are not zero: those of the removed units go too, the largest ones.
    gone = np.argsort(layers[0]["bias"])[-4:]
    assert (layers[0]["bias"][gone] > 0).any()
    units = np.delete(np.arange(16), gone), np.delete(np.arange(8), [0, 6])
    kept = [np.isin(np.arange(n), left)[None] for n, left in zip((16, 8), units, strict=True)]
    singly = kept[1] & (np.arange(16 * 8).reshape(16, 8) % 5 > 0)
    mask = masks.dense(dense["params"])
    mask["Dense_0"]["kernel"], mask["Dense_1"]["kernel"] = map(jnp.asarray, (kept[0], singly))
    run_directory.open_run(tmp_path / "pruned", config_of())
    checkpoints.save_network(tmp_path / "pruned" / "network", dense, mask)
    monkeypatch.setattr(training, "train", lambda network, start, *args, **kwargs: start)
    config.shrinking = shrinking(remove="masked", batch_size=4)

    rows = shrink.shrink(config, tmp_path / "small")

    assert [row["parameters"] for row in rows] == [
        65 * a + (a + 1) * b + (b + 1) * 10 for a, b in [(16, 8), (12, 6)]
    ]
    small, left = from_config.load_trained(config, tmp_path / "small", digits)
    assert left["Dense_0"]["kernel"].all()
    np.testing.assert_array_equal(left["Dense_1"]["kernel"], singly[np.ix_(*units)])
    images = np.asarray(digits.images[:5], np.float32) / 255
    x = images.reshape(5, 64) @ layers[0]["kernel"][:, units[0]] + layers[0]["bias"][units[0]]
    second = (layers[1]["kernel"] * singly)[np.ix_(*units)]
    x = np.maximum(x, 0) @ second + layers[1]["bias"][units[1]]
    logits = np.maximum(x, 0) @ layers[2]["kernel"][units[1]] + layers[2]["bias"]
    np.testing.assert_allclose(small(images), logits, rtol=1e-4, atol=1e-4)
    # Done is done.
    assert shrink.shrink(config, tmp_path / "small") == rows


def test_a_mask_without_a_whole_channel_is_named(tmp_path):
    config = config_of(init_from=str(tmp_path / "pruned"))
    untrained.write(tmp_path / "pruned", config, two_thirds)
    config.shrinking = shrinking(remove="masked")
    with pytest.raises(ValueError, match=r"'masked', which takes nothing away; .*'filter'"):
        shrink.shrink(config, tmp_path / "small")
    assert not (tmp_path / "small").exists()


@pytest.fixture
def untrained_run(tmp_path, monkeypatch):
    """Writes the folder that a run starts from; fine-tuning changes nothing in it."""
    monkeypatch.setattr(training, "train", lambda network, start, *args, **kwargs: start)

    def write(config, mask_of=masks.dense):
        config.init_from = str(tmp_path / "dense")
        return untrained.write(tmp_path / "dense", config, mask_of)

    return write


def test_units_that_the_run_s_mask_has_emptied_go_before_others(tmp_path, untrained_run):
    def without_two_units(params):
        mask = masks.dense(params)
        mask["Dense_0"]["kernel"] = ~jnp.isin(jnp.arange(16), jnp.array([3, 10]))[None]
        return mask

    config = config_of()
    whole = untrained_run(config, without_two_units)["params"]["Dense_0"]["kernel"]
    config.shrinking = shrinking(
        share=0.125, at_most=0.95, criterion="random", allocation="uniform", batch_size=4
    )
    shrink.shrink(config, tmp_path / "small")
    digits = data.load("digits", "test")
    small, _ = from_config.load_trained(config, tmp_path / "small", digits)
    np.testing.assert_array_equal(
        small.params["Dense_0"]["kernel"], np.delete(whole, [3, 10], axis=1)
    )


@pytest.mark.exhaustive
def test_blocks_by_name(tmp_path, untrained_run):
    config = config_of()
    config.model.name, config.model.options = "resnet8", {"width": 2}
    variables = untrained_run(config, two_thirds)
    config.shrinking = shrinking(remove="blocks", target="parameters", at_most=0.99, batch_size=2)

    before, after = shrink.shrink(config, tmp_path / "small")

    # The first stage's block: two 3x3 convolutions of 2 channels, scale and shift behind each.
    assert before["parameters"] - after["parameters"] == 2 * (3 * 3 * 2 * 2) + 2 * (2 + 2)
    digits = data.load("digits", "test")
    classifier, mask = from_config.load_trained(config, tmp_path / "small", digits)
    left = trees.flatten(variables).keys() - trees.flatten(classifier.variables).keys()
    assert {path.split("/")[1] for path in left} == {"BasicBlock_0"}
    pruned = trees.flatten(two_thirds(variables["params"]))
    for path, keep in trees.flatten(mask).items():
        np.testing.assert_array_equal(keep, pruned[path])


@pytest.mark.parametrize(
    "budget",
    [pytest.param(None, marks=pytest.mark.exhaustive), 532e-6],
    ids=["share", "seconds"],
)
def test_rounds_go_on_until_a_batch_takes_the_target_s_time(
    tmp_path, untrained_run, monkeypatch, budget
):
    """A clock that counts parameters: of 760 there have to be 532 or fewer.

    A network takes ten times as long when it is measured again: what was measured first counts.
    """
    config = config_of()
    config.model.options.widths = (10,)
    untrained_run(config)
    config.shrinking = shrinking(share=0.2, target="latency", at_most=0.7, allocation="uniform")
    if budget is not None:
        config.shrinking.update(at_most=0.1, budget=budget)
    measured = collections.Counter()

    def taken(network, *args):
        size = trees.size(network.params)
        measured[size] += 1
        return {"latency": size * 1e-6 * 10 ** (measured[size] - 1)}

    monkeypatch.setattr(shrink, "costs", taken)

    rows = shrink.shrink(config, tmp_path / "small")

    # 64 inputs, 10 classes; of the units a fifth goes each round.
    sizes = [65 * width + (width + 1) * 10 for width in (10, 8, 6)]
    assert [row["latency"] for row in rows] == pytest.approx([size * 1e-6 for size in sizes])
    assert rows[-1]["latency"] <= 0.7 * rows[0]["latency"] < rows[-2]["latency"]
    # Killed before its end was written, it does not measure again what ended it.
    (tmp_path / "small" / from_config.STRUCTURE).unlink()
    assert shrink.shrink(config, tmp_path / "small") == rows


def test_by_sensitivity_the_layer_that_nothing_depends_on_loses_most(
    tmp_path, untrained_run, monkeypatch
):
    config = config_of()
    untrained_run(config)
    config.shrinking = shrinking(
        share=0.25, at_most=0.7, allocation="sensitivity", batch_size=2, examples=8
    )
    config.sensitivity.densities = (0.25, 0.5)

    def accuracy_under(attack, classifier, images, labels, *, eps, key):
        assert len(images) == config.validation.examples
        assert eps == config.validation.eps
        # Robust accuracy, were it a matter of the second layer alone.
        return lambda params: float(jnp.any(params["Dense_1"]["kernel"], 0).mean())

    monkeypatch.setattr(evaluation, "accuracy_under", accuracy_under)
    rows = shrink.shrink(config, tmp_path / "small")
    # A quarter of 16 + 8 units goes, all of them of the first layer; then of 10 + 8 so too.
    widths = [(16, 8), (10, 8), (6, 8)]
    expected = [2 * (64 * a + a * b + b * 10) for a, b in widths]
    assert [row["flops"] for row in rows] == [f for f in expected if f >= rows[-1]["flops"]]
    assert len(rows) > 1


def test_what_fine_tuning_prunes_by_sensitivity_is_measured_on_each_round_s_network(
    tmp_path, untrained_run, monkeypatch
):
    config = config_of()
    untrained_run(config)
    config.method = base("digits", "mlp", "one_shot", epochs=1, sparsity=0.5).method
    config.method.update(adversarial=False, allocation="sensitivity")
    config.shrinking = shrinking(share=0.3, at_most=0.5, allocation="uniform", batch_size=2)
    config.sensitivity.densities = (0.1, 0.5)

    def accuracy_under(attack, classifier, images, labels, *, eps, key):
        return lambda params: float((params["Dense_1"]["kernel"] != 0).mean())

    def only_prune(network, start, phases, dataset, **options):
        example = (dataset.images[:1], dataset.labels[:1])
        return training.loop.end(
            phases[0], training.loop.begin(network, phases[0], start, None, example, draw=(0, 0))
        )

    monkeypatch.setattr(evaluation, "accuracy_under", accuracy_under)
    monkeypatch.setattr(training, "train", only_prune)
    said = collections.defaultdict(list)
    report = lambda task, *call: said[task].append(call)  # noqa: E731
    rows = shrink.shrink(config, tmp_path / "small", report=report)

    assert [row["flops"] for row in rows] == [2 * size for size in (1232, 830, 584)]
    whole, _ = from_config.load_trained(
        run_directory.read_config(tmp_path / "dense"),
        tmp_path / "dense",
        data.load("digits", "train"),
    )
    for number in (1, 2):
        folder = tmp_path / "small" / "rounds" / str(number)
        small, _ = from_config.load_shrunk(folder, whole, (8, 8, 1))
        densities = json.loads((folder / "sensitivity.json").read_text())["densities"]
        assert densities["Dense_1/kernel"] == pytest.approx(1)
        for path, leaf in trees.flatten(small.params).items():
            if path in densities:
                left, nonzero = (
                    leaf.size - round((1 - densities[path]) * leaf.size),
                    jnp.sum(leaf != 0),
                )
                # Of the channels that are left the round before may have pruned more.
                assert nonzero == left if number == 1 else 0 < nonzero <= left
        assert said[f"measure round {number}"] == [(done, 7) for done in range(8)]
    assert set(densities) == {f"Dense_{i}/kernel" for i in range(3)}


@pytest.mark.exhaustive
def test_counts_of_channels_are_multiples(tmp_path, untrained_run):
    config = config_of()
    untrained_run(config)
    config.shrinking = shrinking(
        share=0.3, at_most=0.6, allocation="uniform", multiple=4, batch_size=2
    )

    rows = shrink.shrink(config, tmp_path / "small")

    # Of 16 units 11 would stay, then 8 of 12; of 8 always 6.
    widths = [(16, 8), (12, 8), (8, 8)]
    assert [row["flops"] for row in rows] == [2 * (64 * a + a * b + b * 10) for a, b in widths]
    assert [row["parameters"] for row in rows] == [
        65 * a + (a + 1) * b + (b + 1) * 10 for a, b in widths
    ]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"multiple": 0}, r"shrinking\.multiple is 0; it must be at least 1"),
        ({"blocks": 0}, r"shrinking\.blocks is 0; it must be at least 1"),
        ({"batch_size": 0}, r"shrinking\.batch_size is 0; it must be at least 1"),
        ({"share": 1.0}, r"shrinking\.share is 1\.0; it must lie in \(0, 1\)"),
        ({"share": 0.01}, "'channels', which takes nothing away"),
        ({"share": 0.1, "multiple": 64}, "'channels', which takes nothing away"),
        ({"at_most": 1.0}, r"shrinking\.at_most is 1\.0; it must lie in \(0, 1\)"),
        ({"budget": 0.0}, r"shrinking\.budget is 0\.0; it must lie in \(0, inf\)"),
        ({"budget": 1184.0}, r"budget is 1184 flops; the network of init_from costs 1184 already"),
        (
            {"allocation": "sensitivity", "share": 0.99},
            r"at most the density 0\.01 that shrinking\.share asks for",
        ),
        ({"remove": "channel"}, "Did you mean 'channels'"),
        ({"target": "flop"}, "Did you mean 'flops'"),
        ({"allocation": "erkk"}, "Did you mean 'erk'"),
        ({"exclude": ("Danse_0/*",)}, "'Danse_0/\\*'"),
        ({"criterion": "learned"}, r"criterion 'learned' needs scores"),
        ({"criterion": "taylor", "examples": 0}, "'taylor' needs loss and batches"),
        ({"remove": "blocks"}, "no residual block"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_written(
    tmp_path, untrained_run, wrong, sentence
):
    config = config_of()
    config.model.options.widths = (8,)
    untrained_run(config)
    config.shrinking = shrinking(**wrong)
    with pytest.raises(ValueError, match=sentence):
        shrink.shrink(config, tmp_path / "small")
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"batch_size": 5000}, r"batch_size is 5000; it must lie in \[1, 1197\]"),
        ({"method.include": ("Conv_9*",)}, r"Pattern 'Conv_9\*' matches none of the weights"),
        (
            {"method.allocation": "sensitivity", "sensitivity.densities": (0.5,)},
            r"the lowest at most the density 0\.1 that method\.sparsity asks for",
        ),
        ({"evaluation.protocols.fgsm.attack": "fgsmm"}, "Did you mean 'fgsm'"),
    ],
)
def test_what_comes_after_a_removal_is_looked_at_before_anything_is_written(
    tmp_path, untrained_run, changed, sentence
):
    config = config_of()
    config.model.options.widths = (8,)
    config.method = base("digits", "mlp", "one_shot", epochs=1).method
    untrained_run(config)
    config.shrinking = shrinking(share=0.3, examples=5000)  # more than there are: all of them
    config.update_from_flattened_dict(changed)
    with pytest.raises(ValueError, match=sentence):
        shrink.shrink(config, tmp_path / "small")
    assert not (tmp_path / "small").exists()


def test_a_config_without_the_keys_of_shrinking_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"config has no key `shrinking`; take .*digits_shr"):
        shrink.shrink(config_of(init_from="a run"), tmp_path / "small")
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize(
    "changed", [{"mean": 0.5}, {"std": 0.25}, {"options": {"widths": (8, 8)}}], ids=str
)
def test_a_start_of_another_network_is_refused_before_anything_is_written(
    tmp_path, untrained_run, changed
):
    config = config_of()
    untrained_run(config)
    config.shrinking = shrinking()
    config.model.update(changed)
    with pytest.raises(ValueError, match=r"(?s)init_from is .*, a run of .*this config's model is"):
        shrink.shrink(config, tmp_path / "small")
    assert not (tmp_path / "small").exists()


def test_training_does_not_start_from_a_smaller_network(runs, tmp_path):
    config = config_of(init_from=str(runs[0] / "small"))
    with pytest.raises(ValueError, match="whose network was made smaller; only"):
        train.train(config, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_start_is_needed(tmp_path):
    config = config_of()
    config.shrinking = shrinking()
    with pytest.raises(ValueError, match="init_from is empty"):
        shrink.shrink(config, tmp_path)
