"""Cascades, budgets by bisection and curves, against what single attacks and geometry say."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import attacks
from prunejax.attacks import runner
from prunejax.classifier import Classifier
from tests.compilations import compilations
from tests.linear_models import minimum_distances, random_linear

KEY = jax.random.key(0)
MEMBERS = (
    ("fgsm", attacks.FGSM()),
    ("apgd", attacks.APGD(steps=20)),
    ("fab", attacks.FAB(steps=20)),
    ("square", attacks.Square(steps=60)),
)


@pytest.fixture(scope="module")
def cascaded(relu_network):
    images, labels = relu_network.examples(40, wrong=4)
    cascade = attacks.Cascade(norm="linf", members=MEMBERS)
    options = {"key": KEY, "eps": 0.03, "batch_size": 16}
    return attacks.run(cascade, relu_network.classifier, images, labels, **options), options


def test_a_member_sees_what_those_before_it_left_and_finds_what_it_finds_alone(
    cascaded, relu_network
):
    result, options = cascaded
    images, labels = relu_network.examples(40, wrong=4)
    standing = np.arange(40)
    for place, (name, attack) in enumerate(MEMBERS):
        seen, own = result.members[name]
        assert np.array_equal(seen, standing)
        budget = {"eps": None} if attack.minimum_norm else {}
        alone = attacks.run(attack, relu_network.classifier, images, labels, **(options | budget))
        won = (alone.distance <= 0.03 + 1e-6)[seen]
        assert np.array_equal(own.success, won)
        np.testing.assert_allclose(own.distance[won], alone.distance[seen][won], rtol=1e-4)
        fell = seen[won & (own.distance > 0)]
        assert np.array_equal(np.flatnonzero(result.by == place), fell)
        np.testing.assert_allclose(result.images[seen[won]], own.images[won])
        standing = seen[~own.success]
    assert np.array_equal(np.flatnonzero(~result.success), standing)
    assert 0 < len(standing) < 36


def test_the_result_of_a_cascade_is_within_budget_and_adversarial(cascaded, relu_network):
    result, _ = cascaded
    images, labels = relu_network.examples(40, wrong=4)
    assert np.abs(result.images - images).max() <= 0.03 + 1e-6
    wrong = relu_network.logits(result.images).argmax(axis=1) != labels
    assert np.array_equal(wrong, result.success)
    assert np.array_equal(result.distance == 0, np.arange(40) >= 36)
    assert np.array_equal(result.by[36:], [-1] * 4)
    # Every member's passes are counted: the robust ones met all four.
    robust = ~result.success
    assert np.array_equal(result.forwards[robust], np.full(robust.sum(), 2 + 21 + 40 + 61))


def test_individually_every_member_sees_all_and_the_worst_case_is_the_same(cascaded, relu_network):
    result, options = cascaded
    images, labels = relu_network.examples(40, wrong=4)
    cascade = attacks.Cascade(norm="linf", members=MEMBERS, individual=True)
    every = attacks.run(cascade, relu_network.classifier, images, labels, **options)
    fallen = np.zeros(40, bool)
    for place, (seen, own) in enumerate(every.members.values()):
        assert np.array_equal(seen, np.arange(40))
        first = own.success & ~fallen & (own.distance > 0)
        assert np.array_equal(every.by == place, first)
        np.testing.assert_array_equal(every.images[first], own.images[first])
        fallen |= own.success
    assert np.array_equal(every.success, fallen)
    assert np.array_equal(every.success, result.success)
    assert np.array_equal(every.by, result.by)


def _sine(weights, images):
    score = jnp.sin(images.reshape(len(images), -1) @ weights)
    return jnp.stack([jnp.zeros_like(score), score], axis=1)


@pytest.mark.parametrize(
    "members",
    [
        MEMBERS,
        pytest.param(attacks.autoattack().members, marks=pytest.mark.exhaustive, id="autoattack"),
    ],
)
def test_other_numbers_of_survivors_compile_nothing(members):
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(40, 3, 2)).astype(np.float32)
    weights = rng.normal(size=6).astype(np.float32)
    labels = (np.sin(images.reshape(40, -1) @ weights) > 0).astype(int)
    cascade = attacks.Cascade(norm="linf", members=members)

    def survivors(scale, eps):
        classifier = Classifier(scale * weights, _sine)
        result = attacks.run(cascade, classifier, images, labels, key=KEY, eps=eps, batch_size=16)
        return [len(seen) for seen, _ in result.members.values()]

    first = survivors(1, 0.01)
    with compilations() as compiled:
        second = survivors(1, 0.2)
    assert len(first) == len(second) == 4
    assert first != second
    assert not compiled


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claiming(attacks.FGSM):
    """Says that it has succeeded whatever it has."""

    def result(self, classifier, state):
        distance = jnp.max(jnp.abs(state.x - state.image))
        return attacks.Found(state.x, jnp.array(True), distance)


def test_curves_and_bisection_keep_the_lanes_and_count_what_is_unconfirmed():
    """FGSM reaches class 1 from each image with any budget above its distance, and uses it all."""
    distances = (np.arange(70) + 0.5) / 280
    images = np.stack([0.5 - 2 * distances, np.full(70, 0.5)], axis=1).astype(np.float32)
    some = Classifier(np.array([1.0, -1.0], np.float32), _sine), images, np.zeros(70, int)
    options = {"key": KEY, "batch_size": 64}
    result = attacks.run(Claiming(), *some, eps=0.05, **options)
    assert np.array_equal(result.success, distances < 0.05)
    assert result.diagnostics.unconfirmed == np.sum(distances > 0.05)

    with compilations() as compiled:
        budgets = [0.05, 0.15, 0.22]
        curve = attacks.robust_accuracies(Claiming(), *some, budgets, **options)
        # The last run sees 28 examples.
        np.testing.assert_allclose(curve.accuracies, [56 / 70, 28 / 70, 8 / 70])
        nearest = attacks.smallest_budget(Claiming(), *some, upper=0.11, halvings=3, **options)
    assert not compiled
    fallen = distances < 0.11
    assert np.array_equal(nearest.success, fallen)
    assert fallen.sum() == 31
    # Of eight brackets, the one that the distance lies in; the digits 1 of its number are failures.
    bracket = np.floor(8 * distances[fallen] / 0.11).astype(int)
    np.testing.assert_allclose(nearest.distance[fallen], 0.11 * (bracket + 1) / 8, rtol=1e-5)
    failures = sum(int(number).bit_count() for number in bracket)
    assert nearest.diagnostics.unconfirmed == 39 + failures


def _masked(_, images):
    """Class 1 above 0.5, with a gradient that always points the wrong way."""
    x = images[:, 0, 0, 0]
    lying = jax.lax.stop_gradient(2 * x) - x
    return jnp.stack([jnp.full_like(x, 0.5), lying], axis=1)


@pytest.mark.parametrize("gradient", [attacks.FGSM(), attacks.DeepFool(norm="linf")])
@pytest.mark.parametrize(
    "blind",
    [attacks.Square(steps=30), attacks.HopSkipJump(norm="linf", steps=2, queries=20, tries=8)],
    ids=lambda attack: type(attack).__name__,
)
def test_masked_gradients_are_noticed(gradient, blind):
    """Whichever of the two knows no budget, and runs once for a whole curve."""
    images, labels = np.full((5, 1, 1, 1), 0.45, np.float32), np.zeros(5, int)
    cascade = attacks.Cascade(norm="linf", members=(("gradient", gradient), ("blind", blind)))
    some = cascade, Classifier(None, _masked), images, labels
    result = attacks.run(*some, key=KEY, eps=0.1)
    assert np.array_equal(result.by, [1] * 5)
    curve = attacks.robust_accuracies(*some, [0.02, 0.1], key=KEY)
    nearest = attacks.smallest_budget(*some, upper=0.1, key=KEY, halvings=2)
    for each in (result, curve, nearest):
        assert any("gradients may be masked" in warning for warning in each.warnings())


def _masked_below(_, images):
    """Class 1 above 0.5; the gradient lies below 0.47."""
    x, lying = images[:, 0, 0, 0], _masked(None, images)
    honest = jnp.stack([jnp.full_like(x, 0.5), x], axis=1)
    return jnp.where(x[:, None] < 0.47, lying, honest)


@pytest.mark.parametrize(("number", "said"), [(1, []), (3, ["3 of 1000 examples fell to"])])
def test_gradients_are_doubted_for_a_share_of_all_examples(number, said):
    """At 0.1 alone as after 0.02, where the honest ones fall and few are left."""
    images = np.where(np.arange(1000) < number, 0.45, 0.49).astype(np.float32)
    members = (("fgsm", attacks.FGSM()), ("square", attacks.Square(steps=30)))
    cascade = attacks.Cascade(norm="linf", members=members)
    some = Classifier(None, _masked_below), images.reshape(-1, 1, 1, 1), np.zeros(1000, int)
    results = [attacks.run(cascade, *some, key=KEY, eps=0.1)]
    results.append(attacks.robust_accuracies(cascade, *some, [0.02, 0.1], key=KEY))
    np.testing.assert_allclose(results[1].accuracies, [number / 1000, 0])
    results.append(attacks.smallest_budget(cascade, *some, upper=0.1, key=KEY, halvings=2))
    for result in results:
        assert [warning[:26] for warning in result.warnings()] == said


def test_a_doubt_of_many_runs_is_said_once_for_the_most_examples():
    """Two of four images have no gradient, then two of the three that are left."""
    images = np.array([[0.1], [0.2], [0.4], [0.48]], np.float32)
    network = Classifier(None, lambda _, x: _threshold(None, jnp.maximum(x, 0.3)))
    some = network, images, np.zeros(4, int)
    curve = attacks.robust_accuracies(attacks.FGSM(), *some, [0.05, 0.07], key=KEY)
    np.testing.assert_array_equal(curve.accuracies, [0.75, 0.75])
    nearest = attacks.smallest_budget(attacks.FGSM(), *some, upper=0.05, halvings=2, key=KEY)
    for result in (curve, nearest):
        (warning,) = result.warnings()
        assert warning.startswith("2 of 4 images have a zero gradient")


def test_counts_are_halved_until_they_are_neighbours():
    """One feature of 3,072 is enough; ten halvings would leave three."""
    weights = np.full(3072, 1e-3, np.float32)
    weights[0] = 1.0

    def network(weights, images):
        score = (images - 0.4) @ weights - 0.1
        return jnp.stack([jnp.zeros_like(score), score], axis=1)

    result = attacks.smallest_budget(
        attacks.FGSM(norm="l0"), Classifier(weights, network), np.full((1, 3072), 0.4, np.float32),
        np.zeros(1, int), upper=3072, key=KEY, batch_size=2,
    )  # fmt: skip
    assert result.distance == 1


@pytest.mark.parametrize(
    ("norm", "attack"),
    [
        ("linf", attacks.APGD(steps=30)),
        ("l2", attacks.PGD(norm="l2", steps=40)),
        ("l0", attacks.PGD(norm="l0", steps=40)),
    ],
)
def test_bisection_finds_the_distance_of_a_linear_network(norm, attack, linear_classifier):
    problem = random_linear(0, (20,), classes=2)
    exact = minimum_distances(problem, norm)
    result = attacks.smallest_budget(
        attack, linear_classifier(problem), problem.images, problem.labels,
        upper=20.0 if norm == "l0" else 2.0, key=KEY, halvings=14,
    )  # fmt: skip
    assert result.success.all()
    assert np.all(result.distance >= exact * (1 - 1e-5))
    assert np.all(result.distance <= (exact if norm == "l0" else 1.02 * exact))


def test_bisection_leaves_what_does_not_fall_at_the_upper_budget(linear_classifier):
    problem = random_linear(0, (20,), classes=2)
    exact = minimum_distances(problem, "linf")
    upper = np.median(exact)
    result = attacks.smallest_budget(
        attacks.APGD(steps=30), linear_classifier(problem), problem.images, problem.labels,
        upper=upper, key=KEY, halvings=14,
    )  # fmt: skip
    assert np.array_equal(result.success, exact < upper)
    assert np.array_equal(np.isinf(result.distance), exact >= upper)


@pytest.mark.parametrize("attack", [attacks.FGSM(), attacks.FAB()])
def test_a_curve_is_one_minus_the_distribution_of_the_distances(attack, linear_classifier):
    problem = random_linear(1, (20,), classes=2)
    exact = np.sort(minimum_distances(problem, "linf"))
    budgets = [0.0, *(exact[:-1] + exact[1:]) / 2, 2.0]
    curve = attacks.robust_accuracies(
        attack, linear_classifier(problem), problem.images, problem.labels, budgets, key=KEY
    )
    np.testing.assert_allclose(curve.accuracies, 1 - np.arange(9) / 8)
    np.testing.assert_allclose(curve.budgets, budgets, rtol=1e-6)
    assert curve.warnings() == []
    if attack.minimum_norm:
        np.testing.assert_allclose(np.sort(curve.result.distance), exact, rtol=0.01)
    else:  # many runs, none of which saw all
        assert curve.result is None


@pytest.mark.parametrize("others", [(), (("fgsm", attacks.FGSM()),)])
def test_a_minimum_norm_attack_of_a_cascade_runs_once_for_the_whole_curve(
    others, linear_classifier, monkeypatch
):
    problem = random_linear(1, (20,), classes=2)
    exact = np.sort(minimum_distances(problem, "linf"))
    budgets = [0.0, *(exact[:-1] + exact[1:]) / 2, 2.0]
    ran, run = [], runner.run
    monkeypatch.setattr(
        runner, "run", lambda attack, *args: ran.append(attack) or run(attack, *args)
    )
    nearest = attacks.FAB(steps=20)
    cascade = attacks.Cascade(norm="linf", members=(*others, ("fab", nearest)))
    some = linear_classifier(problem), problem.images, problem.labels
    curve = attacks.robust_accuracies(cascade, *some, budgets, key=KEY)
    np.testing.assert_allclose(curve.accuracies, 1 - np.arange(9) / 8)
    assert ran.count(nearest) == 1
    assert len(ran) == (1 if not others else 1 + 8)  # at each budget, until nothing is left


def _threshold(_, images):
    """Class 1 above 0.5, never class 2."""
    x = images[:, 0]
    return jnp.stack([jnp.full_like(x, 0.5), x, -x], axis=1)


FGSM_THEN_APGD_T = attacks.Cascade(
    norm="linf",
    members=(("fgsm", attacks.FGSM()), ("apgd_t", attacks.APGD(steps=5, loss="dlr", targets=2))),
)
REPLACED = "apgd_t: loss 'dlr' needs more classes than there are; 'margin' was used."


@pytest.mark.parametrize("attack", [attacks.FGSM(), attacks.DeepFool(norm="linf")])
def test_every_wrapper_says_that_outputs_are_probabilities(attack):
    """Once, however many runs say it."""
    classifier = Classifier(None, lambda _, images: jax.nn.softmax(_threshold(None, images)))
    some = classifier, np.array([[0.3], [0.4]], np.float32), np.zeros(2, int)
    results = [attacks.robust_accuracies(attack, *some, [0.05, 0.15, 0.25], key=KEY)]
    np.testing.assert_array_equal(results[0].accuracies, [1, 0.5, 0])
    if not attack.minimum_norm:
        results.append(attacks.smallest_budget(attack, *some, upper=0.25, halvings=3, key=KEY))
    for result in results:
        (warning,) = result.warnings()
        assert "look like probabilities" in warning


def test_bisection_and_curves_say_what_a_later_run_or_member_says():
    """FGSM leaves the other attack nothing at 0.3, and all of it at 0.15."""
    images, labels = np.full((3, 1), 0.3, np.float32), np.zeros(3, int)
    some = Classifier(None, _threshold), images, labels
    largest = attacks.run(FGSM_THEN_APGD_T, *some, eps=0.3, key=KEY)
    assert list(largest.members) == ["fgsm"]
    assert largest.warnings() == []
    nearest = attacks.smallest_budget(FGSM_THEN_APGD_T, *some, upper=0.3, halvings=4, key=KEY)
    assert nearest.warnings() == [REPLACED]
    curve = attacks.robust_accuracies(FGSM_THEN_APGD_T, *some, [0.1, 0.15, 0.3], key=KEY)
    np.testing.assert_array_equal(curve.accuracies, [1, 1, 0])
    assert curve.warnings() == [REPLACED]


def test_a_member_that_cannot_take_the_images_says_so_before_any_has_run(monkeypatch):
    monkeypatch.setattr(runner, "run", lambda *_, **__: pytest.fail("a member has run"))
    classifier = Classifier(None, lambda _, images: images.reshape(len(images), -1)[:, :4])
    some = classifier, np.full((2, 2, 2, 2, 1), 0.5, np.float32), np.zeros(2, int)
    autoattack = attacks.autoattack()
    assert isinstance(autoattack.members[-1][1], attacks.Square)
    for way in (
        lambda: attacks.run(autoattack, *some, eps=0.1, key=KEY),
        lambda: attacks.smallest_budget(autoattack, *some, upper=0.1, key=KEY),
        lambda: attacks.robust_accuracies(autoattack, *some, [0.1], key=KEY),
        lambda: attacks.robust_accuracies(autoattack, *some, [0.1, 0.2], key=KEY),
    ):
        with pytest.raises(ValueError, match=r"images has shape \[N, 2, 2, 2, 1\]; Square needs"):
            way()


def test_wrong_arguments_are_named(relu_network):
    images, labels = relu_network.examples(2)
    some = relu_network.classifier, images, labels
    with pytest.raises(ValueError, match=r"'ddn' in 'l2'; the budget is in 'linf'"):
        attacks.Cascade(norm="linf", members=(("ddn", attacks.DDN()),))
    mixed = ("left", attacks.FGSM()), ("reached", attacks.PGD(targeted=True))
    for members in (mixed, mixed[::-1]):
        with pytest.raises(ValueError, match=r"\['reached'\], targeted, beside \['left'\], untarg"):
            attacks.Cascade(norm="linf", members=members)
    for members in ((attacks.PGD(),), {"pgd": attacks.PGD()}, (("pgd",),)):
        with pytest.raises(ValueError, match="pairs of a name and an attack are needed"):
            attacks.Cascade(norm="linf", members=members)
    for name in (0, None, ["pgd"]):
        with pytest.raises(ValueError, match=r"members has the names \[.*\]; strings are needed"):
            attacks.Cascade(norm="linf", members=((name, attacks.PGD()),))
    with pytest.raises(ValueError, match="individual is 'x'; it must be True or False"):
        attacks.autoattack(individual="x")
    for way in (
        lambda **misspelt: attacks.smallest_budget(attacks.FGSM(), *some, upper=1.0, **misspelt),
        lambda **misspelt: attacks.robust_accuracies(attacks.FGSM(), *some, [1.0], **misspelt),
    ):
        with pytest.raises(ValueError, match=r"option of a run 'batchsize'.*'batch_size'"):
            way(key=KEY, batchsize=3)
    with pytest.raises(ValueError, match="members is empty"):
        attacks.Cascade(norm="linf", members=())
    cascade = attacks.Cascade(norm="linf", members=MEMBERS)
    with pytest.raises(ValueError, match="eps is None; Cascade needs a budget in linf"):
        attacks.run(cascade, *some, key=KEY)
    with pytest.raises(ValueError, match="finds the smallest budget by itself"):
        attacks.smallest_budget(attacks.DDN(), *some, upper=1.0, key=KEY)
    falling = np.array([5, 3], np.uint8)  # whose difference is 254
    for budgets in ([0.2, 0.1], [0.1, 0.1], [-0.1, 0.1], [], 0.1, ["a"], [0.1j], falling):
        with pytest.raises(ValueError, match="budgets is"):
            attacks.robust_accuracies(attacks.FGSM(), *some, budgets, key=KEY)
    for budgets in ([np.nan], [0.1, np.inf], [0.1, 1e39]):
        for attack in (attacks.FGSM(), attacks.DDN()):
            with pytest.raises(ValueError, match="increasing finite numbers >= 0"):
                attacks.robust_accuracies(attack, *some, budgets, key=KEY)
    for halvings in (0, 2.5, True):
        with pytest.raises(ValueError, match=f"halvings is {halvings}"):
            attacks.smallest_budget(attacks.FGSM(), *some, upper=1.0, key=KEY, halvings=halvings)
    with pytest.raises(ValueError, match="AutoAttack knows 'linf', 'l2' and 'l1'"):
        attacks.autoattack(norm="l0")
    with pytest.raises(ValueError, match="version is 'standart'"):
        attacks.create("autoattack", version="standart")
