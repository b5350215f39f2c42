"""Adversarial examples for training: their budgets, by hand and on a linear network."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import Classifier, attacks, norms
from prunejax.training import adversaries

SHAPE = (3, 2, 1)
KEY = jax.random.key(0)


def linear(variables, images):
    return images.reshape(len(images), -1) @ variables["w"] + variables["b"]


@functools.cache
def problem():
    """A linear classifier of four classes, and images inside the box and on its edges."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=(6, 4))
    images = rng.uniform(-0.2, 1.2, size=(8, *SHAPE)).clip(0, 1)
    variables = {"w": jnp.asarray(w, jnp.float32), "b": jnp.asarray(-w.sum(0) / 2, jnp.float32)}
    return Classifier(variables, linear), jnp.asarray(images, jnp.float32), jnp.arange(8) % 4


def rms(eta):
    return np.sqrt(np.mean(np.asarray(eta, np.float64) ** 2, axis=(1, 2, 3)))


def make(adversary, labels=None):
    classifier, images, own = problem()
    return jax.jit(adversary)(classifier, images, own if labels is None else labels, KEY)


# -- cutoff and scale ------------------------------------------------------------------------------

# Root mean squares: sqrt((9 + 16) / 2) = 5 / sqrt(2), 1 / sqrt(2), 0.
ETA = jnp.array([[3.0, -4.0], [1.0, 0.0], [0.0, 0.0]])


def test_a_given_cutoff_by_hand():
    # delta = 1 / sqrt(2): the first shrinks to a fifth, the second is just as long as that.
    out = adversaries.cut_and_scale(ETA, cutoff=2**-0.5, scale=0.5)
    np.testing.assert_allclose(out, [[0.3, -0.4], [0.5, 0.0], [0.0, 0.0]], rtol=1e-6)


def test_the_mean_as_cutoff_by_hand():
    # delta = (5 + 1 + 0) / (3 sqrt(2)) = 2 / sqrt(2): the first shrinks by 2 / 5, the others stay.
    out = adversaries.cut_and_scale(ETA, cutoff=None, scale=0.9)
    np.testing.assert_allclose(out, [[1.08, -1.44], [0.9, 0.0], [0.0, 0.0]], rtol=1e-5)


def test_all_axes_but_the_first_are_features():
    eta = jnp.array([[1.0, 7.0], [5.0, 5.0]]).reshape(1, 2, 2, 1)  # mean square 25, size 5
    out = adversaries.cut_and_scale(eta, cutoff=1.0, scale=2.0)
    np.testing.assert_allclose(out.ravel(), [0.4, 2.8, 2.0, 2.0], rtol=1e-6)


def test_no_perturbation_stays_none_and_finite():
    for cutoff in (None, 0.1):
        out = adversaries.cut_and_scale(jnp.zeros((2, 3)), cutoff, 0.9)
        np.testing.assert_array_equal(out, np.zeros((2, 3)))


# -- blind -----------------------------------------------------------------------------------------


@functools.cache
def uncut():
    """DeepFool's perturbations as they are: a cutoff that cuts nothing, a scale of one."""
    return np.asarray(make(adversaries.blind(cutoff=1e6, scale=1.0)) - problem()[1])


def test_uncut_perturbations_cross_the_boundary():
    classifier, images, _ = problem()
    before, after = (np.argmax(classifier(x), -1) for x in (images, images + uncut()))
    assert np.all(before != after)
    assert np.std(rms(uncut())) > 0.01  # budgets differ between the examples


@pytest.mark.parametrize("scale", [0.5, 0.9])
def test_budgets_are_at_most_scale_times_the_mean(scale):
    _, images, _ = problem()
    out = make(adversaries.blind(scale=scale))
    size = rms(uncut())
    expected = scale * np.minimum(size, size.mean())
    np.testing.assert_allclose(rms(out - images), expected, rtol=1e-4, atol=1e-6)
    assert np.all(rms(out - images) <= scale * size.mean() * (1 + 1e-5))
    # Their directions are those of DeepFool.
    factor = (expected / size)[:, None, None, None]
    np.testing.assert_allclose(out - images, factor * uncut(), rtol=1e-3, atol=1e-6)


def test_a_given_cutoff_is_the_largest_budget():
    out = make(adversaries.blind(cutoff=0.05, scale=1.0))
    expected = np.minimum(rms(uncut()), 0.05)
    np.testing.assert_allclose(rms(out - problem()[1]), expected, rtol=1e-4)


# z = (0.7, 3 x1 - 4 x2): f = z_1 - z_0 = 3 x1 - 4 x2 - 0.7 with the gradient (3, -4) of length 5.
#   x = (0.5, 0.5): f = -1.2, class 0; the boundary is 1.2 / 5 = 0.24 away, along (0.6, -0.8).
#   x = (0.6, 0.5): f = -0.9, class 0; the boundary is 0.9 / 5 = 0.18 away, along the same.
# DeepFool is there after one step and goes 2 % further: lengths 0.2448 and 0.1836.
BY_HAND = {
    # The mean length is 0.2142 (root mean squares are lengths / sqrt(2), all alike), so the first
    # is cut to it and the second stays; times 0.9: 0.19278 and 0.16524.
    None: [[0.5 + 0.6 * 0.19278, 0.5 - 0.8 * 0.19278], [0.6 + 0.6 * 0.16524, 0.5 - 0.8 * 0.16524]],
    # A root mean square of 0.14 is a length of 0.197990: 0.9 times that, and 0.16524 again.
    0.14: [[0.5 + 0.6 * 0.178191, 0.5 - 0.8 * 0.178191], [0.699144, 0.367808]],
}


@pytest.mark.parametrize("cutoff", BY_HAND)
def test_blind_examples_of_a_linear_classifier_by_hand(cutoff):
    variables = {"w": jnp.array([[0.0, 3.0], [0.0, -4.0]]), "b": jnp.array([0.7, 0.0])}
    images = jnp.array([[0.5, 0.5], [0.6, 0.5]]).reshape(2, 2, 1, 1)
    adversary = adversaries.blind(cutoff=cutoff, scale=0.9)
    out = adversary(Classifier(variables, linear), images, jnp.array([0, 1]), KEY)
    # DeepFool's touch more than onto the boundary is 1e-5.
    np.testing.assert_allclose(out.reshape(2, 2), BY_HAND[cutoff], atol=1.5e-5)


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_blind_examples_are_images(scale):
    out = make(adversaries.blind(cutoff=1e6, scale=scale))
    assert np.all((out >= 0) & (out <= 1))


def test_blind_does_not_look_at_the_labels():
    labels = [make(adversaries.blind(), labels=jnp.full(8, k)) for k in (0, 3)]
    np.testing.assert_array_equal(*labels)


# -- prescribed ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.05), ("l2", 0.3)])
def test_prescribed_examples_stay_in_ball_and_box(norm, eps):
    _, images, _ = problem()
    out = make(adversaries.prescribed(attacks.PGD(norm=norm, steps=5), eps))
    distance = jax.vmap(norms.get(norm).distance)(out - images)
    assert np.all(distance <= eps * (1 + 1e-5))
    assert np.all((out >= 0) & (out <= 1))


def test_prescribed_is_the_maximiser_of_the_loss_on_two_classes():
    # With two classes the worst point of an Linf ball is x - eps sign(w_y - w_other), clipped.
    classifier, images, labels, towards = two_classes()
    attack = attacks.PGD(norm="linf", steps=10, loss="cross_entropy", relative_step=0.25)
    out = adversaries.prescribed(attack, 0.1)(classifier, images, labels, KEY)
    sign = towards * np.where(labels == 0, 1, -1)[:, None, None, None]
    np.testing.assert_allclose(out, np.clip(images + 0.1 * sign, 0, 1), atol=1e-6)


def two_classes():
    """The problem's first two classes, and the direction from the first to the second."""
    classifier, images, labels = problem()
    two = {"w": classifier.variables["w"][:, :2], "b": classifier.variables["b"][:2]}
    towards = np.sign(two["w"][:, 1] - two["w"][:, 0]).reshape(SHAPE)
    return Classifier(two, linear), images, labels % 2, towards


def test_with_the_loss_kl_it_goes_as_far_from_the_clean_prediction_as_it_can():
    # Of two logits the divergence grows with their difference's change, to either side.
    classifier, images, labels, towards = two_classes()
    attack = attacks.PGD(norm="linf", steps=10, loss="kl", relative_step=0.25)
    out = adversaries.prescribed(attack, 0.1)(classifier, images, labels, KEY)
    farthest = [np.clip(images + side * 0.1 * towards, 0, 1) for side in (-1, 1)]
    miss = np.min([np.abs(out - far).max(axis=(1, 2, 3)) for far in farthest], axis=0)
    np.testing.assert_allclose(miss, 0, atol=1e-6)


def test_with_one_target_it_heads_for_the_likeliest_other_class():
    # On a linear network z_t - z_y is largest at the corner that sign(w_t - w_y) points to.
    classifier, images, labels = problem()
    attack = attacks.PGD(norm="linf", steps=10, targets=1, relative_step=0.25)
    out = make(adversaries.prescribed(attack, 0.5))
    others = np.where(np.arange(4) == labels[:, None], -np.inf, classifier(images))
    w = np.asarray(classifier.variables["w"]).T
    sign = np.sign(w[others.argmax(axis=1)] - w[labels]).reshape(images.shape)
    np.testing.assert_allclose(out, np.clip(images + 0.5 * sign, 0, 1), atol=1e-6)


@pytest.mark.parametrize(
    ("attack", "eps"),
    [(attacks.Square(norm="linf", steps=20), 0.2), (attacks.SparseRS(norm="l0", steps=20), 3)],
    ids=["square", "sparse_rs"],
)
def test_a_black_box_attack_trains_on_what_it_finds(attack, eps):
    classifier, images, labels = problem()
    find = jax.vmap(attack.find, in_axes=(None, 0, 0, 0, None))
    goals, keys = attacks.Goal(labels), jax.random.split(KEY, len(images))
    found = jax.jit(find)(classifier, images, goals, keys, eps)
    success = np.asarray(found.success)
    assert success.sum() > 2
    out = make(adversaries.prescribed(attack, eps))
    np.testing.assert_array_equal(out[success], found.image[success])


@pytest.mark.parametrize(
    ("norm", "random_start"), [("linf", True), ("linf", False), ("l2", True), ("l1", True)]
)
def test_without_budget_the_images_come_back_bit_for_bit(norm, random_start):
    attack = attacks.PGD(norm=norm, steps=3, random_start=random_start)
    out = make(adversaries.prescribed(attack, 0.0))
    np.testing.assert_array_equal(out, problem()[1])


@pytest.mark.parametrize(
    "adversary",
    [adversaries.blind(), adversaries.prescribed(attacks.PGD(norm="linf", steps=3), 0.1)],
    ids=["blind", "prescribed"],
)
def test_no_gradient_flows_through_an_adversary(adversary):
    classifier, images, labels = problem()
    total = lambda classifier, images: adversary(classifier, images, labels, KEY).sum()  # noqa: E731
    for leaf in jax.tree.leaves(jax.jit(jax.grad(total, argnums=(0, 1)))(classifier, images)):
        np.testing.assert_array_equal(leaf, 0)


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cutoff": 0.0}, r"cutoff is 0\.0"),
        ({"cutoff": float("nan")}, "cutoff is nan"),
        ({"scale": -1.0}, r"scale is -1\.0"),
        ({"steps": 0}, "steps is 0"),
        ({"candidates": 0}, "candidates is 0"),
    ],
)
def test_blind_refuses_what_makes_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        adversaries.blind(**options)


@pytest.mark.parametrize("eps", [-0.1, float("nan")])
def test_prescribed_refuses_a_negative_budget(eps):
    with pytest.raises(ValueError, match=f"eps is {eps}"):
        adversaries.prescribed(attacks.PGD(), eps)


def test_prescribed_refuses_an_attack_without_budget():
    with pytest.raises(ValueError, match=r"DeepFool.*needs a fixed-budget attack"):
        adversaries.prescribed(attacks.DeepFool(), 0.1)


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (attacks.PGD(targeted=True), "targeted is True; labels are the true classes"),
        (attacks.PGD(restarts=5), "restarts is 5; training makes one attempt"),
        (attacks.PGD(targets=9), "targets is 9; training makes one attempt"),
        (attacks.Cascade(norm="linf", members=(("pgd", attacks.PGD()),)), "needs a fixed-budget"),
    ],
    ids=["targeted", "restarts", "targets", "cascade"],
)
def test_prescribed_refuses_what_training_would_not_do(attack, message):
    with pytest.raises(ValueError, match=message):
        adversaries.prescribed(attack, 0.1)
