"""Records of evaluations that were stopped, and what is read off incomplete ones."""

import concurrent.futures
import dataclasses
import json
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from prunejax import attacks, models
from prunejax.attacks import cascade
from prunejax.attacks.diagnostics import Doubt
from prunejax.attacks.lanes import lane_count
from prunejax.classifier import Classifier, Network
from prunejax.data import Dataset
from prunejax.evaluation import (
    Protocol,
    evaluate,
    is_complete,
    predict,
    records,
    robust_accuracy,
    robustness,
)
from prunejax.norms import NORMS
from tests.compilations import compilations

BUDGETS = (0.05, 0.1, 0.2)
PROTOCOLS = [
    Protocol("pgd", attacks.PGD(steps=2, random_start=False), BUDGETS, 0.1),
    Protocol("deepfool", attacks.DeepFool(steps=3), BUDGETS, 0.1),
]


def _threshold(threshold, images):
    """Class 1 from the threshold on."""
    x = images[:, 0, 0, 0]
    return jnp.stack([jnp.full_like(x, threshold), x], axis=1)


CLASSIFIER = Classifier(np.float32(0.5), _threshold)
IMAGES = np.arange(0, 250, 10, dtype=np.uint8).reshape(-1, 1, 1, 1)
DATASET = Dataset(IMAGES, np.zeros(len(IMAGES), np.int32), ("low", "high"), "steps", "test")


HALF = attacks.PGD(steps=1, relative_step=0.5, random_start=False)


def _rows(table):
    return table.sort_by([("attack", "ascending"), ("budget", "ascending"), ("index", "ascending")])


def test_accuracies_are_those_of_the_threshold(tmp_path):
    members = {"half": HALF, "deepfool": attacks.DeepFool(norm="linf"), "fgsm": attacks.FGSM()}
    together = attacks.Cascade(norm="linf", members=tuple(members.items()))
    protocols = [*PROTOCOLS, Protocol("cascade", together, BUDGETS, 0.1)]
    calls = {name: [] for name in ("predictions", "pgd", "deepfool", "cascade")}
    table = evaluate(
        CLASSIFIER,
        DATASET,
        protocols,
        tmp_path,
        batch_size=8,
        progress=lambda name, *call: calls[name].append(call),
    )
    for name, called in calls.items():
        number = 25 * (len(BUDGETS) if name in ("pgd", "cascade") else 1)
        assert {total for _, total in called} == {number}
        assert called == sorted(called)
        assert (called[0], called[-1]) == ((0, number), (number, number))
    x = IMAGES.ravel() / 255
    for protocol in protocols:
        own = table.filter(pc.equal(table["attack"], protocol.name))
        assert is_complete(own, protocol, len(DATASET))
        for budget in BUDGETS:
            assert robust_accuracy(own, budget) == pytest.approx(np.mean(x + budget < 0.5))


def test_an_evaluation_stopped_anywhere_goes_on_where_it_was(tmp_path, monkeypatch):
    whole = evaluate(CLASSIFIER, DATASET, PROTOCOLS, tmp_path / "whole", batch_size=4)
    run, attacked = cascade.run_on, []

    def stops_at_every_third_call(attack, classifier, given, progress):
        if len(attacked) % 3 == 2:
            attacked.append(None)
            raise KeyboardInterrupt
        attacked.append((attack, *set(given.eps), tuple(given.indices)))
        return run(attack, classifier, given, progress)

    monkeypatch.setattr(cascade, "run_on", stops_at_every_third_call)
    for _ in range(50):
        try:
            table = evaluate(CLASSIFIER, DATASET, PROTOCOLS, tmp_path / "parts", batch_size=4)
            break
        except KeyboardInterrupt:
            continue
    assert attacked.count(None) >= 3
    assert _rows(table).equals(_rows(whole))
    done = [call for call in attacked if call is not None]
    assert len(set(done)) == len(done), "nothing is attacked twice"
    assert max(len(indices) for *_, indices in done) <= 8, "a stop loses no more"


def test_records_of_a_cascade_say_which_member_found_what_and_at_which_cost(tmp_path):
    both = attacks.Cascade(norm="linf", members=(("half", HALF), ("fgsm", attacks.FGSM())))
    protocol = Protocol("both", both, BUDGETS[:2], 0.1)
    table = evaluate(CLASSIFIER, DATASET, [protocol], tmp_path, batch_size=8)
    rows = _rows(table).to_pylist()
    x = IMAGES.ravel() / 255
    fell_before = np.zeros(len(x), bool)
    for budget in BUDGETS[:2]:
        by_half, by_fgsm = (x < 0.5) & (x + budget / 2 >= 0.5), (x < 0.5) & (x + budget >= 0.5)
        here, rows = rows[: len(x)], rows[len(x) :]
        members = np.where(by_half, "half", np.where(by_fgsm, "fgsm", None))
        found_now = np.where(fell_before, [row["member"] for row in here], members)
        assert [row["member"] for row in here] == list(found_now)
        for row, fell, wrong, half_found in zip(here, fell_before, x >= 0.5, by_half, strict=True):
            passes = row["forwards"], row["backwards"]
            assert (passes == (0, 0)) == (fell or wrong)
            assert row["backwards"] == (0 if fell or wrong else 1 if half_found else 2)
        fell_before |= by_fgsm
    assert all(row["member"] is None for row in evaluate(*_one_attack(tmp_path)).to_pylist())


def _one_attack(directory):
    return CLASSIFIER, DATASET, PROTOCOLS[:1], directory


def test_records_that_lack_a_column_are_made_again_and_read_beside_new_ones(tmp_path):
    whole = evaluate(*_one_attack(tmp_path))
    path = tmp_path / "pgd.parquet"
    settings = pq.read_schema(path).metadata[b"settings"].decode()
    records.write(path, whole.drop_columns("forwards"), settings)
    records.write(tmp_path / "other.parquet", whole, settings)
    both = records.read_all(tmp_path)
    assert both["forwards"].null_count == len(whole)
    assert _rows(evaluate(*_one_attack(tmp_path))).equals(_rows(whole))


@pytest.mark.parametrize("processes", [1, 3])
def test_what_is_written_at_once_is_little_and_fills_the_lanes(processes, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: processes)

    def lanes(examples):
        return lane_count(-(-examples // processes), 64, devices=1)

    for number in range(1, 600):
        parts = robustness._parts(np.arange(number), batch_size=64)
        assert np.array_equal(np.concatenate(parts), np.arange(number))
        assert max(map(len, parts)) <= 2 * 64 * processes
        assert {lanes(len(part)) for part in parts} == {lanes(number)}
    assert robustness._parts(np.arange(0), batch_size=64) == []


def test_a_stop_of_a_thousand_examples_in_the_usual_lanes_loses_half():
    assert [len(part) for part in robustness._parts(np.arange(1000), batch_size=256)] == [500, 500]


@pytest.mark.parametrize(
    ("first", "second", "together"),
    [
        (["both"], ["both", "a longer one — second"], ["both", "a longer one — second"]),
        (["first", "both"], ["both", "second"], ["first", "both", "second"]),
        (["first"], [], ["first"]),
        ([], [], []),
    ],
)
def test_all_processes_know_the_warnings_of_each(first, second, together, monkeypatch):
    """Two threads as two processes; arrays of different shapes cannot be gathered."""
    own, meeting, brought = threading.local(), threading.Barrier(2, timeout=30), [None, None]

    def process_allgather(array):
        brought[own.process] = array
        meeting.wait()
        gathered = np.stack(brought)
        meeting.wait()
        return gathered

    def process(number, sentences):
        own.process = number
        found = robustness._of_all_processes([Doubt(sentence, sentence) for sentence in sentences])
        return [doubt.said for doubt in found]

    monkeypatch.setattr(robustness.multihost_utils, "process_allgather", process_allgather)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        heard = list(pool.map(process, range(2), (first, second)))
    assert heard == [together] * 2


def test_records_of_something_else_are_not_taken_for_these(tmp_path, monkeypatch):
    network = Network(models.create("mlp", 2, widths=()))
    variables = network.init(jax.random.key(0), (1, 1, 1))
    before = Classifier(variables, network), DATASET
    evaluate(*before, PROTOCOLS[:1], tmp_path, batch_size=8)

    class AttackedError(Exception):
        pass

    def attacked(*_):
        raise AttackedError

    monkeypatch.setattr(cascade, "run_on", attacked)
    evaluate(*before, PROTOCOLS[:1], tmp_path, batch_size=8)
    larger = jax.tree.map(lambda leaf: leaf + 1, variables)
    for after in (
        (Classifier(variables, lambda v, x: 2 * network(v, x)), DATASET),
        (Classifier(variables, dataclasses.replace(network, std=0.5)), DATASET),
        (Classifier(larger, network), DATASET),
        (before[0], dataclasses.replace(DATASET, images=255 - IMAGES)),
        (before[0], dataclasses.replace(DATASET, labels=1 - DATASET.labels)),
    ):
        with pytest.raises(AttackedError):
            evaluate(*after, PROTOCOLS[:1], tmp_path, batch_size=8)


def test_reasons_to_doubt_are_kept_with_the_records(tmp_path):
    def probabilities(threshold, images):
        return jax.nn.softmax(_threshold(threshold, images))

    classifier, path = Classifier(np.float32(0.5), probabilities), tmp_path / "pgd.parquet"
    assert records.warnings_in(path) == []
    for _ in range(2):  # the second time nothing is attacked
        evaluate(classifier, DATASET, PROTOCOLS[:1], tmp_path, batch_size=8)
        (warning,) = records.warnings_in(path)
        assert "look like probabilities" in warning


def test_incomplete_records_are_known_as_such(tmp_path):
    pgd = PROTOCOLS[0]
    table = evaluate(CLASSIFIER, DATASET, [pgd], tmp_path, batch_size=8)
    assert not is_complete(table.slice(0, len(table) - 1), pgd, len(DATASET))
    assert not is_complete(table, pgd, len(DATASET) + 1)


def _one(value):
    """A data set of one grey image, of class 0."""
    image = np.full((1, 1, 1, 1), value, np.uint8)
    return Dataset(image, np.zeros(1, np.int32), ("low", "high"), "one", "test")


def _fgsm(*budgets):
    return [Protocol("fgsm", attacks.FGSM(), budgets, budgets[-1])]


@pytest.mark.parametrize(
    ("variables", "thresholds"), [(None, (0.9, 0.6)), (np.float32(0), (0.9, 0.3))]
)
def test_two_functions_of_one_name_are_not_taken_for_each_other(variables, thresholds, tmp_path):
    """The first two predict alike and have no variables, the others have the same."""

    def robust(threshold):
        classifier = Classifier(variables, lambda _, images: _threshold(threshold, images))
        return robust_accuracy(evaluate(classifier, _one(128), _fgsm(0.2), tmp_path), 0.2)

    assert [robust(threshold) for threshold in thresholds] == [1, 0]


def _sawtooth(threshold, images):
    """Class 1 only up to a tenth above the threshold, though its logit rises on either side."""
    x = images[:, 0, 0, 0]
    score = jnp.where(x < threshold + 0.1, x - threshold, x - threshold - 0.7)
    return jnp.stack([jnp.zeros_like(x), score], axis=1)


@pytest.mark.parametrize("later", [(0.15, 0.3), (0.15,)])
def test_what_falls_at_a_budget_that_comes_later_has_fallen_at_the_larger_ones(later, tmp_path):
    """One step from 0.4 ends in class 1 with a budget of 0.15, beyond it with 0.3."""
    some = Classifier(np.float32(0.5), _sawtooth), _one(102)
    first = evaluate(*some, _fgsm(0.3), tmp_path / "twice")
    assert robust_accuracy(first, 0.3) == 1
    twice = evaluate(*some, _fgsm(*later), tmp_path / "twice")
    assert _rows(twice).equals(_rows(evaluate(*some, _fgsm(0.15, 0.3), tmp_path / "once")))
    assert [robust_accuracy(twice, budget) for budget in (0.15, 0.3)] == [0, 0]


TARGETED = attacks.FGSM(targeted=True)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"attack": TARGETED}, r"attack of 'some' is FGSM\(.*, targeted; accuracy needs"),
        (
            {"attack": attacks.Cascade(norm="linf", members=(("fgsm", TARGETED),))},
            "attack of 'some' is Cascade.*, targeted",
        ),
        ({"name": "l2/pgd"}, "name is 'l2/pgd'; .* without folders"),
        ({"name": ""}, "name is ''"),
        ({"name": 3}, "name is 3; .* without folders"),
        ({"attack": "pgd"}, r"attack is 'pgd'; .*attacks\.create\(name"),
        ({"budgets": 0.1}, "budgets of 'some' is 0.1; a tuple is needed"),
        ({"budgets": np.array([0.2, 0.1])}, "increasing"),
        ({"budgets": (np.nan,)}, r"budgets of 'some' is \(nan,\); all must be finite"),
        ({"budgets": (0.1, np.inf)}, r"budgets of 'some' is \(0.1, inf\); all must be finite"),
        ({"budgets": (0.1, 1e39)}, "all must be finite"),
        ({"budgets": (0.2, 0.1)}, "increasing"),
        ({"stated": np.nan}, "stated budget of 'some' is nan; a finite number >= 0"),
        ({"stated": None}, "stated budget of 'some' is None"),
        ({"stated": -1}, "stated budget of 'some' is -1"),
    ],
)
@pytest.mark.parametrize("attack", [attacks.FGSM(), attacks.DeepFool()])
def test_protocols_that_are_none(attack, wrong, message):
    right = {"name": "some", "attack": attack, "budgets": (0.1,), "stated": 0.1}
    Protocol(**right)
    with pytest.raises(ValueError, match=message):
        Protocol(**(right | wrong))


@pytest.mark.parametrize("budget", [np.inf, np.nan, -1, None])
def test_a_budget_at_which_there_is_no_accuracy(budget):
    columns = {"index": [0], "label": 0, "prediction": 0, "attack": "a", "norm": "l2"}
    columns |= {"budget": None, "success": False, "distance": np.inf, "member": None}
    passes = {"forwards": 1, "backwards": 1} | dict.fromkeys(NORMS, 0.0)
    table = records.table(columns | passes)
    assert robust_accuracy(table, np.float32(1e38)) == 1
    with pytest.raises(ValueError, match=f"budget is {budget}; a finite number >= 0 is needed"):
        robust_accuracy(table, budget)


def test_protocols_of_one_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"protocols has the names \['fgsm', 'fgsm'\]; each"):
        evaluate(CLASSIFIER, DATASET, 2 * _fgsm(0.1), tmp_path)


def test_other_numbers_of_survivors_compile_at_most_once_more(tmp_path, monkeypatch):
    """In the 64 lanes of the first run, or where they are enough in 16; never in 32."""
    images = np.arange(70, dtype=np.uint8).reshape(-1, 1, 1, 1)
    dataset = Dataset(images, np.zeros(70, np.int32), ("low", "high"), "grey", "test")
    classifier = Classifier(np.float32(69.5 / 255), lambda v, images: _threshold(v, images))
    run, widths, budgets = cascade.run_on, [], []

    def watched(attack, classifier, given, progress):
        widths.append(given.width)
        return run(attack, classifier, given, progress)

    monkeypatch.setattr(cascade, "run_on", watched)
    compiled = []
    for left in (30, 20, 14, 9, 4):
        budgets.append((70 - left) / 255)
        with compilations() as programs:
            table = evaluate(classifier, dataset, _fgsm(*budgets), tmp_path, batch_size=64)
        assert robust_accuracy(table, budgets[-1]) == pytest.approx(left / 70)
        compiled.append(len(programs) > 0)
    assert widths == [64, 64, 64, 16, 16]
    assert compiled == [True, False, False, True, False]


def test_the_default_kind_of_keys_changes_nothing(tmp_path):
    protocols = [Protocol("pgd", attacks.PGD(steps=1, relative_step=1e-3), (0.2,), 0.2)]
    expected = evaluate(CLASSIFIER, DATASET, protocols, tmp_path / "threefry", batch_size=8)
    with jax.default_prng_impl("rbg"):
        found = evaluate(CLASSIFIER, DATASET, protocols, tmp_path / "rbg", batch_size=8)
    assert 0.0 < robust_accuracy(found, 0.2) < 1.0
    assert _rows(found).equals(_rows(expected))


def _masked(threshold, images):
    """Class 1 from the threshold on; below 0.47 the gradient points the wrong way."""
    x = images[:, 0, 0, 0]
    honest, lying = x, jax.lax.stop_gradient(2 * x) - x
    return jnp.stack([jnp.full_like(x, threshold), jnp.where(x < 0.47, lying, honest)], axis=1)


@pytest.mark.parametrize("budgets", [(0.1,), (0.02, 0.1)])
@pytest.mark.parametrize("number", [1, 3])
def test_what_gradients_miss_is_counted_among_all_examples(number, budgets, tmp_path):
    """Not in a part, nor among the few that 0.02 leaves: three of a thousand are many, one is not.

    At 0.02 the others fall, which are near 0.5.
    """
    images = np.full((1000, 1, 1, 1), 125, np.uint8)
    images[np.arange(number) * 300] = 115
    dataset = Dataset(images, np.zeros(1000, np.int32), ("low", "high"), "grey", "test")
    members = (("fgsm", attacks.FGSM()), ("square", attacks.Square(steps=30)))
    both = Protocol("both", attacks.Cascade(norm="linf", members=members), budgets, 0.1)
    classifier = Classifier(np.float32(0.5), _masked)
    for _ in range(2):  # the second time nothing is attacked
        table = evaluate(classifier, dataset, [both], tmp_path, batch_size=128)
        left = [number / 1000, 0][-len(budgets) :]
        np.testing.assert_allclose([robust_accuracy(table, budget) for budget in budgets], left)
        warnings = records.warnings_in(tmp_path / "both.parquet")
        said = ["3 of 1000 examples fell to an attack without gradients"] if number == 3 else []
        assert [warning.split(" after")[0] for warning in warnings] == said


@pytest.mark.parametrize("stops", [(), (2,), (1, 4)])
def test_a_doubt_of_many_runs_is_said_once_for_all_of_their_examples(stops, tmp_path, monkeypatch):
    """Of 4 images in the first of three parts and 8 in the next the gradient is 0."""

    def flat(threshold, images):
        return _threshold(0.5, jnp.maximum(images, threshold))

    images = np.full((48, 1, 1, 1), 100, np.uint8)
    images[12:24], images[47] = 10, 125  # the last one falls at 0.02
    dataset = Dataset(images, np.zeros(48, np.int32), ("low", "high"), "grey", "test")
    some = Classifier(np.float32(0.1), flat), dataset, _fgsm(0.02, 0.03), tmp_path
    run, calls = cascade.run_on, []

    def stopped(*args):
        calls.append(len(calls))
        if calls[-1] in stops:
            raise KeyboardInterrupt
        return run(*args)

    monkeypatch.setattr(cascade, "run_on", stopped)
    for _ in stops:
        with pytest.raises(KeyboardInterrupt):
            evaluate(*some, batch_size=8)
    evaluate(*some, batch_size=8)
    assert len(calls) == 2 * 3 + len(stops)
    (warning,) = records.warnings_in(tmp_path / "fgsm.parquet")
    assert warning.startswith("12 of 48 images have a zero gradient")


def test_doubts_that_older_records_keep_as_sentences_are_read(tmp_path):
    settings = {"settings": "", "warnings": json.dumps(["Something.", "Something else."])}
    table = records.SCHEMA.empty_table().replace_schema_metadata(settings)
    pq.write_table(table, tmp_path / "old.parquet")
    assert records.warnings_in(tmp_path / "old.parquet") == ["Something.", "Something else."]


def test_a_network_may_hold_a_key(tmp_path):
    def network(variables, images):
        return _threshold(variables["threshold"], images)

    def robust(seed):
        variables = {"threshold": np.float32(0.5), "key": jax.random.key(seed)}
        table = evaluate(Classifier(variables, network), _one(102), _fgsm(0.2), tmp_path)
        return robust_accuracy(table, 0.2), pq.read_schema(tmp_path / "fgsm.parquet").metadata

    (one, settings), (other, others) = robust(0), robust(1)
    assert one == other == 0
    assert settings[b"settings"] != others[b"settings"]


@pytest.mark.parametrize(
    ("classifier", "examples", "message"),
    [
        (CLASSIFIER, 0, "at least one image"),
        (Classifier(np.float32(np.nan), _threshold), 3, "NaN or infinite entries"),
        (_threshold, 3, r"a Classifier\(variables, apply_fn\) is needed"),
    ],
)
def test_what_cannot_be_attacked_is_refused_before_anything_is_predicted(
    classifier, examples, message, tmp_path, monkeypatch
):
    monkeypatch.setattr(robustness, "predict", lambda *_, **__: pytest.fail("predicted first"))
    with pytest.raises(ValueError, match=message):
        evaluate(classifier, DATASET.take(examples), PROTOCOLS, tmp_path)


def test_predictions_of_nothing_or_by_nothing():
    with pytest.raises(ValueError, match="images is empty"):
        predict(CLASSIFIER, IMAGES[:0])
    with pytest.raises(ValueError, match="batch_size is 0; an integer of at least 1"):
        predict(CLASSIFIER, IMAGES, batch_size=0)


@pytest.mark.parametrize("left", [0, 1000])
def test_damaged_records_are_named(left, tmp_path):
    some = CLASSIFIER, DATASET, _fgsm(0.1), tmp_path
    path = tmp_path / "fgsm.parquet"
    evaluate(*some)
    path.write_bytes(path.read_bytes()[:left])
    message = f"{path} is damaged .*Remove it, and its examples are attacked again"
    for way in (
        lambda: evaluate(*some),
        lambda: records.read_all(tmp_path),
        lambda: records.warnings_in(path),
    ):
        with pytest.raises(ValueError, match=message):
            way()
