"""Records of evaluations that were stopped, and what is read off incomplete ones."""

import concurrent.futures
import dataclasses
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from prunejax import attacks, models
from prunejax.attacks.lanes import lane_count
from prunejax.classifier import Classifier, Network
from prunejax.data import Dataset
from prunejax.evaluation import (
    Protocol,
    evaluate,
    is_complete,
    records,
    robust_accuracy,
    robustness,
)

BUDGETS = (0.05, 0.1, 0.2)
PROTOCOLS = [
    Protocol("pgd", attacks.PGD(steps=2, random_start=False), BUDGETS, 0.1),
    Protocol("deepfool", attacks.DeepFool(steps=3), BUDGETS, 0.1),
]


def _threshold(_, images):
    """Class 1 from 0.5 on."""
    x = images[:, 0, 0, 0]
    return jnp.stack([jnp.full_like(x, 0.5), x], axis=1)


CLASSIFIER = Classifier(None, _threshold)
IMAGES = np.arange(0, 250, 10, dtype=np.uint8).reshape(-1, 1, 1, 1)
DATASET = Dataset(IMAGES, np.zeros(len(IMAGES), np.int32), ("low", "high"), "steps", "test")


def _rows(table):
    return table.sort_by([("attack", "ascending"), ("budget", "ascending"), ("index", "ascending")])


def test_accuracies_are_those_of_the_threshold(tmp_path):
    calls = {"predictions": [], "pgd": [], "deepfool": []}
    table = evaluate(
        CLASSIFIER,
        DATASET,
        PROTOCOLS,
        tmp_path,
        batch_size=8,
        progress=lambda name, *call: calls[name].append(call),
    )
    for name, number in (("predictions", 25), ("pgd", 25 * len(BUDGETS)), ("deepfool", 25)):
        assert calls[name] == sorted(calls[name])
        assert calls[name][0] == (0, number)
        assert calls[name][-1] == (number, number)
    x = IMAGES.ravel() / 255
    for protocol in PROTOCOLS:
        own = table.filter(pc.equal(table["attack"], protocol.name))
        assert is_complete(own, protocol, len(DATASET))
        for budget in BUDGETS:
            assert robust_accuracy(own, budget) == pytest.approx(np.mean(x + budget < 0.5))


def test_an_evaluation_stopped_anywhere_goes_on_where_it_was(tmp_path, monkeypatch):
    whole = evaluate(CLASSIFIER, DATASET, PROTOCOLS, tmp_path / "whole", batch_size=4)
    run, attacked = attacks.run, []

    def stops_at_every_third_call(attack, classifier, images, labels, **options):
        if len(attacked) % 3 == 2:
            attacked.append(None)
            raise KeyboardInterrupt
        attacked.append((attack, options["eps"], tuple(options["indices"])))
        return run(attack, classifier, images, labels, **options)

    monkeypatch.setattr(attacks, "run", stops_at_every_third_call)
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
    half = attacks.PGD(steps=1, relative_step=0.5, random_start=False)
    cascade = attacks.Cascade(norm="linf", members=(("half", half), ("fgsm", attacks.FGSM())))
    protocol = Protocol("both", cascade, BUDGETS[:2], 0.1)
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
def test_what_is_written_at_once_is_little_and_needs_no_other_lanes(processes, monkeypatch):
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
        return robustness._of_all_processes(sentences)

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

    def attacked(*_, **__):
        raise AttackedError

    monkeypatch.setattr(attacks, "run", attacked)
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
    def probabilities(_, images):
        return jax.nn.softmax(_threshold(None, images))

    classifier, path = Classifier(None, probabilities), tmp_path / "pgd.parquet"
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
