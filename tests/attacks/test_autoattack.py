"""The ensembles have the published members, and the L0 one finds the fewest features."""

import dataclasses

import jax
import numpy as np
import pytest

from prunejax import attacks
from tests.attacks.test_closed_form import assert_valid
from tests.linear_models import minimum_distances, random_linear


def members(**options) -> list[tuple[str, attacks.Attack]]:
    return list(attacks.create("autoattack", **options).members)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_versions_of_autoattack_are_the_published_ones(norm):
    larger = norm == "l1"
    if larger:
        apgd_ce = attacks.APGDL1(steps=100, loss="cross_entropy", share=0.8, larger_budgets=True)
    else:
        apgd_ce = attacks.APGD(norm=norm, steps=100, loss="cross_entropy", alpha=0.75, rho=0.75)
    apgd_dlr = dataclasses.replace(apgd_ce, loss="dlr")
    apgd_t = dataclasses.replace(apgd_dlr, targets=9)
    fab = attacks.FAB(norm=norm, steps=100, candidates=9, alpha_max=0.1, eta=1.05, beta=0.9)
    fab_t = dataclasses.replace(fab, targets=9)
    square = attacks.Square(norm=norm, steps=5000, p_init=0.8, rescale_schedule=False)
    assert members(norm=norm) == [
        ("apgd_ce", dataclasses.replace(apgd_ce, restarts=5 if larger else 1)),
        ("apgd_t", dataclasses.replace(apgd_t, targets=5 if larger else 9)),
        ("fab_t", fab_t),
        ("square", square),
    ]
    assert members(norm=norm, version="plus") == [
        ("apgd_ce", dataclasses.replace(apgd_ce, restarts=5)),
        ("apgd_dlr", dataclasses.replace(apgd_dlr, restarts=5)),
        ("fab", fab),
        ("fab_restarts", dataclasses.replace(fab, restarts=4, random_start=True)),
        ("square", square),
        ("apgd_t", apgd_t),
        ("fab_t", fab_t),
    ]
    assert members(norm=norm, version="rand") == [("apgd_ce", apgd_ce), ("apgd_dlr", apgd_dlr)]


@pytest.mark.exhaustive
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize(("version", "classes"), [("standard", 4), ("plus", 4), ("rand", 2)])
def test_autoattack_succeeds_just_above_the_exact_distance(
    norm, version, classes, linear_classifier
):
    problem = random_linear(0, (20,), classes)
    attack = attacks.create("autoattack", norm=norm, version=version)
    for share, wanted in ((0.95, False), (1.25, True)):
        eps = share * minimum_distances(problem, norm)
        result = attacks.run(
            attack, linear_classifier(problem), problem.images, problem.labels,
            key=jax.random.key(0), eps=eps,
        )  # fmt: skip
        assert np.array_equal(result.success, np.full(8, wanted))
        assert_valid(result, problem, problem.labels, norm, eps)


@pytest.mark.parametrize("norm", ["l0", "l0_pixels"])
def test_the_l0_ensemble_counts_in_one_unit(norm):
    found = dict(attacks.create("l0_ensemble", norm=norm, steps=500, queries=77).members)
    assert list(found) == ["sigma_zero", "fmn", "pgd", "sparse_rs"]
    assert {attack.norm for attack in found.values()} == {norm}
    assert (found["pgd"].steps, found["pgd"].restarts, found["sparse_rs"].steps) == (50, 10, 77)


@pytest.mark.parametrize("argument", ["steps", "queries"])
@pytest.mark.parametrize("value", [0, 2.5])
def test_the_l0_ensemble_names_its_own_arguments(argument, value):
    with pytest.raises(ValueError, match=f"{argument} is {value}; an integer of at least 1"):
        attacks.create("l0_ensemble", **{argument: value})


@pytest.mark.exhaustive
@pytest.mark.parametrize(("norm", "shape"), [("l0", (20,)), ("l0_pixels", (5, 4, 3))])
def test_the_l0_ensemble_succeeds_with_the_fewest(norm, shape, linear_classifier):
    problem = random_linear(0, shape, classes=3)
    _, _, images, labels = problem
    fewest = minimum_distances(problem, norm)
    attack = attacks.create("l0_ensemble", norm=norm, steps=300, queries=1000)
    for eps, wanted in ((fewest - 1, False), (fewest, True)):
        result = attacks.run(
            attack, linear_classifier(problem), images, labels, key=jax.random.key(0), eps=eps
        )
        assert np.array_equal(result.success, np.full(8, wanted))
        assert_valid(result, problem, labels, norm, eps)
