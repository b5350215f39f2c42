"""Reasons to doubt a result are found where they are, and only there."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import attacks
from prunejax.attacks.diagnostics import Doubt, added, sentences
from prunejax.classifier import Classifier
from prunejax.evaluation import predict

KEY = jax.random.key(0)
IMAGES = np.linspace(0.1, 0.9, 8, dtype=np.float32).reshape(8, 1)
LABELS = np.zeros(8, int)


def diagnostics(apply_fn, attack=None, variables=None, **options):
    attack = attack or attacks.PGD(steps=2)
    classifier = Classifier(variables, apply_fn)
    options = {"eps": 0.05, "key": KEY, **options}
    return attacks.run(attack, classifier, IMAGES, LABELS, **options).diagnostics


def healthy(_, images):
    x = images[:, 0]
    return jnp.stack([jnp.ones_like(x), x - 1, -x - 2, x - 5], axis=1)


def test_a_healthy_network_raises_no_doubt():
    found = diagnostics(healthy)
    assert found.warnings() == []


def flat_above_a_half(_, images):
    x = jnp.minimum(images[:, 0], 0.5)
    return jnp.stack([jnp.ones_like(x), x - 1], axis=1)


@pytest.mark.parametrize("batch_size", [2, 6, 256])
def test_zero_gradients_are_counted_among_all_images(batch_size):
    """The first half has none; 6 lanes see the images 0 to 3 once more, as padding."""
    found = diagnostics(flat_above_a_half, batch_size=batch_size)
    assert found.zero_gradient == 0.5
    assert found.warnings()[0].startswith("4 of 8 images have a zero gradient")


COUNTED = Doubt("a", "{number} of {among}.")
MEASURED = Doubt("b", "By {number:.2g}.")


def test_of_one_kind_the_doubt_of_the_largest_number_is_said():
    few, many = COUNTED._replace(number=2, among=2), COUNTED._replace(number=3, among=9)
    other, none = Doubt("c", "Else."), COUNTED._replace(kind="d", among=9)
    for doubts in ([few, none, other, many], [many, few, other, few, none]):
        assert sentences(doubts) == ["3 of 9.", "Else."]
    assert sentences([few, many._replace(member="{x}")]) == ["2 of 2.", "{x}: 3 of 9."]


def test_what_was_counted_on_different_examples_adds_up():
    """With the examples that raised no doubt; of what was measured the largest remains."""
    parts = [COUNTED._replace(number=number, among=16) for number in (0, 3, 1)]
    parts += [MEASURED._replace(number=number) for number in (0.1, 0.3, 0.2)]
    assert sentences(added(parts)) == ["4 of 48.", "By 0.3."]
    assert added(added(parts[:2]) + added(parts[2:])) == added(parts)
    apart = [
        COUNTED._replace(number=1, among=2, **of) for of in ({}, {"member": "x"}, {"budget": 1})
    ]
    assert added(apart) == apart


def saturated(_, images):
    return healthy(None, images) * 1000


def test_the_cross_entropy_saturates_where_the_margin_does_not():
    assert diagnostics(saturated).zero_gradient == 0
    attack = attacks.PGD(steps=2, loss="cross_entropy")
    assert diagnostics(saturated, attack).zero_gradient == 1


def test_probabilities_are_noticed():
    found = diagnostics(lambda _, images: jax.nn.softmax(healthy(None, images)))
    assert found.probabilities
    assert any("softmax" in warning for warning in found.warnings())


def broken_above_a_half(_, images):
    x = images[:, 0]
    return jnp.stack([jnp.ones_like(x), jnp.where(x > 0.5, jnp.nan, x - 1)], axis=1)


def test_what_is_not_finite_is_counted_and_stops_nobody():
    attack = attacks.PGD(steps=2, random_start=False)
    result = attacks.run(
        attack, Classifier(None, broken_above_a_half), IMAGES, LABELS,
        key=KEY, eps=0.0, batch_size=4,
    )  # fmt: skip
    assert result.diagnostics.non_finite == 0.5
    assert result.images.shape == IMAGES.shape


def broken_beyond(_, images):
    """Class 0 everywhere, and NaN above 0.6: the logarithm of a negative number."""
    x = images[:, 0]
    return healthy(None, images) + 0 * jnp.log(0.6 - x)[:, None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Alike(attacks.PGD):
    """Tries that are all alike, so that two of them can be followed by hand."""

    random_start: bool = False
    restarts: int = 2

    draws: ClassVar[bool] = True


@pytest.mark.parametrize(("norm", "label"), [("linf", 0), ("l2", 0), ("l2", 3)])
def test_attacks_that_end_where_the_network_is_nan_are_counted(norm, label):
    """In Linf a NaN gradient makes the iterate NaN, in L2 the iterate stops where it is."""
    images = np.array([[0.1], [0.3], [0.45], [0.55]], np.float32)

    def network(_, images):
        logits = broken_beyond(None, images)
        return logits[:, ::-1] if label else logits

    result = attacks.run(
        Alike(norm=norm, steps=4),
        Classifier(None, network),
        images,
        np.full(4, label),
        key=KEY,
        eps=0.2,
    )
    assert not result.success.any()
    assert result.diagnostics.non_finite == 0
    assert result.diagnostics.diverged == 2 * 2  # 0.45 + 0.2 and 0.55 + 0.2, at both attempts
    (warning,) = result.warnings()
    assert warning.startswith("4 attempts ended in NaN or infinity")


@pytest.mark.parametrize(("high", "third", "diverged"), [(np.inf, -9.0, 2), (1.0, -np.inf, 0)])
def test_attempts_that_end_where_a_logit_overflows_are_counted(high, third, diverged):
    """Two images go beyond 0.6. A class that is masked everywhere is no doubt."""

    def network(_, images):
        x = images[:, 0]
        own = jnp.where(x > 0.6, high, 1.0)
        return jnp.stack([own, x - 5, jnp.full_like(x, third)], axis=1)

    images = np.array([[0.1], [0.3], [0.45], [0.55]], np.float32)
    some = Classifier(None, network), images, np.zeros(4, int)
    result = attacks.run(attacks.PGD(steps=4, random_start=False), *some, key=KEY, eps=0.2)
    assert not result.success.any()
    assert result.diagnostics.diverged == diverged


@pytest.mark.parametrize("label", [0, 3])
def test_an_image_on_which_the_network_is_nan_is_not_classified_right(label):
    images, labels = np.array([[0.1], [0.7]], np.float32), np.full(2, label)
    turn = -1 if label else 1
    network = Classifier(None, lambda _, images: broken_beyond(None, images)[:, ::turn])
    result = attacks.run(attacks.PGD(steps=1), network, images, labels, key=KEY, eps=0.0)
    assert np.array_equal(result.distance, [np.inf, 0.0])
    assert np.array_equal(predict(network, images), [label, -1])


def test_a_random_search_leaves_a_start_where_the_network_is_nan():
    """It starts with all four pixels up, in NaN, or down; a window moves three of them."""
    images = np.full((16, 4), 0.5, np.float32)

    def network(_, images):  # class 1 where all are down
        x = images.mean(axis=1)
        return jnp.stack([x, jnp.full_like(x, 0.35)], axis=1) + 0 * jnp.log(0.6 - x)[:, None]

    attack = attacks.Square(steps=20)
    result = attacks.run(
        attack, Classifier(None, network), images, np.zeros(16, int), key=KEY, eps=0.2
    )
    assert result.success.all()
    assert 2 < np.sum(result.forwards > 1) < 14  # those that started up


def test_an_attack_weaker_than_one_step_is_noticed():
    """Class 1 begins at 0.5; one step goes 0.3 far, the attack a tenth of that."""
    images = np.array([[0.1], [0.21], [0.3], [0.46], [0.48], [0.6]], np.float32)
    classifier = Classifier(None, lambda _, x: jnp.stack([jnp.full(len(x), 0.5), x[:, 0]], axis=1))
    attack = attacks.PGD(steps=1, relative_step=0.1, random_start=False)
    options = {"key": KEY, "eps": 0.3, "batch_size": 4}
    result = attacks.run(attack, classifier, images, np.zeros(6, int), **options)
    assert np.array_equal(result.success, [False, False, False, False, True, True])
    weaker = [False, True, True, True, False, False]
    assert np.array_equal(result.diagnostics.weaker, weaker)
    (warning,) = result.warnings()
    assert warning.startswith("3 of 6 examples fell to a single step")

    strong = attacks.PGD(steps=5, random_start=False)
    assert not attacks.run(
        strong, classifier, images, np.zeros(6, int), **options
    ).diagnostics.weaker.any()

    def cascade(*members):
        members = tuple((f"member {place}", member) for place, member in enumerate(members))
        cascade = attacks.Cascade(norm="linf", members=members)
        return attacks.run(cascade, classifier, images, np.zeros(6, int), **options)

    # What another member finds is no reason to doubt the ensemble; the member itself still says it.
    both = cascade(attack, strong)
    assert np.array_equal(both.members["member 0"][1].diagnostics.weaker, weaker)
    assert not both.diagnostics.weaker.any()
    assert both.warnings() == []
    alone = cascade(attack, dataclasses.replace(attack, relative_step=0.15))
    assert np.array_equal(alone.success, [False, False, False, True, True, True])
    assert np.array_equal(alone.diagnostics.weaker, [False, True, True, False, False, False])
    assert [warning[:13] for warning in alone.warnings()] == ["member 0: 2 o", "member 1: 2 o"]


@pytest.mark.parametrize("batch_size", [2, 8, 256])
def test_networks_that_normalise_by_the_batch_are_noticed(batch_size):
    def network(_, images):
        return healthy(None, images - images.mean(axis=0) + 0.5)

    (device,) = jax.devices()[:1]
    found = diagnostics(network, batch_size=batch_size, devices=[device])
    assert found.unrepeatable == 0
    assert any("evaluation mode" in warning for warning in found.warnings())
    assert diagnostics(healthy, batch_size=batch_size).batch_dependent < 1e-6


def half_and_half(_, images):
    """Class 0 below a half, else class 1; never class 2."""
    x = images[:, 0]
    return jnp.stack([jnp.full_like(x, 0.5), x, x - 5, x - 6], axis=1)


@pytest.mark.parametrize(
    ("labels", "share", "doubted"),
    [([0] * 4 + [1] * 4, 1.0, True), ([0] * 5 + [2] * 3, 0.5, False), ([2] * 8, 0.0, False)],
)
@pytest.mark.parametrize("attack", ["pgd", "square"])
def test_true_labels_given_as_targets_are_noticed(labels, share, doubted, attack):
    classifier, labels = Classifier(None, half_and_half), np.array(labels)
    options = {"steps": 2, "targeted": True}
    found = attacks.run(
        attacks.create(attack, **options), classifier, IMAGES, labels, eps=0.01, key=KEY
    )
    assert found.diagnostics.at_target == share
    said = [warning for warning in found.warnings() if "class to reach already" in warning]
    assert len(said) == doubted
    untargeted = attacks.create(attack, steps=2)
    found = attacks.run(untargeted, classifier, IMAGES, labels, eps=0.01, key=KEY)
    assert found.diagnostics.at_target == 0


def test_the_one_step_of_a_targeted_attack_heads_for_the_target():
    images = np.full((3, 2), 0.4, np.float32)

    def network(_, x):  # the target 1 lies right, 2 lies up, 3 nowhere
        nowhere = jnp.full(len(x), 0.5)
        return jnp.stack([nowhere, x[:, 0] - 0.02 * x[:, 1], x[:, 1], nowhere - 1], axis=1)

    attack = attacks.PGD(steps=1, relative_step=0.01, random_start=False, targeted=True)
    result = attacks.run(
        attack, Classifier(None, network), images, np.array([1, 2, 3]), key=KEY, eps=0.2
    )
    assert not result.success.any()
    assert np.array_equal(result.diagnostics.weaker, [True, True, False])


def test_a_minimum_norm_attack_is_weaker_than_one_step_where_it_found_nothing():
    """One step leads to the corner of the box; the attack makes one of 0.001."""
    attack = attacks.DDN(steps=1, init_eps=1e-3)
    images = np.array([[0.3], [0.4999], [0.6]], np.float32)
    classifier = Classifier(None, lambda _, x: jnp.stack([jnp.full(len(x), 0.5), x[:, 0]], axis=1))
    result = attacks.run(attack, classifier, images, np.zeros(3, int), key=KEY)
    assert np.array_equal(result.success, [False, True, True])
    assert np.array_equal(result.diagnostics.weaker, [True, False, False])


BLACK_BOX = [
    attacks.Square(steps=30),
    attacks.Square(norm="l2", steps=30),
    attacks.SparseRS(steps=10),
    attacks.OnePixel(steps=3, population=8),
    attacks.HopSkipJump(steps=2, queries=20, tries=8),
]


@pytest.mark.parametrize("attack", BLACK_BOX, ids=lambda a: f"{type(a).__name__}-{a.norm}")
def test_a_black_box_needs_no_network_that_can_be_differentiated(attack):
    """Another library's, behind a callback, is attacked as its copy in JAX is."""

    def elsewhere(_, images):
        def numpy_healthy(images):
            x = np.asarray(images)[..., 0]
            return np.stack([np.ones_like(x), x - 1, -x - 2, x - 5], axis=-1)

        shape = jax.ShapeDtypeStruct((len(images), 4), jnp.float32)
        return jax.pure_callback(numpy_healthy, shape, images, vmap_method="expand_dims")

    eps = None if attack.minimum_norm else 1.0
    one, other = (
        attacks.run(attack, Classifier(None, network), IMAGES, LABELS, key=KEY, eps=eps)
        for network in (elsewhere, healthy)
    )
    np.testing.assert_array_equal(one.images, other.images)
    np.testing.assert_array_equal(one.success, other.success)
    assert one.diagnostics.zero_gradient == 0
    with pytest.raises(ValueError, match="callback"):  # by JAX: a gradient cannot be had
        diagnostics(elsewhere)


def test_a_network_that_does_not_repeat_itself_is_noticed():
    draws = np.random.default_rng(0)

    def noisy(_, images):
        shape = jax.ShapeDtypeStruct((), jnp.float32)
        noise = jax.pure_callback(
            lambda: np.float32(draws.normal()), shape, vmap_method="broadcast_all"
        )
        return healthy(None, images) + jax.lax.stop_gradient(noise) * jnp.arange(4)

    found = diagnostics(noisy)
    assert found.unrepeatable > 0.01
    assert any("repeated passes" in warning for warning in found.warnings())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claims(attacks.PGD):
    """Claims success at this place."""

    x: float = 0.0

    def result(self, classifier, state):
        x = jnp.full_like(state.image, self.x)
        return attacks.Found(x, jnp.array(True), jnp.float32(0))


@pytest.mark.parametrize(
    ("x", "eps", "outside", "unconfirmed"),
    [(0.5, 0.05, 8, 8), (0.5, 1.0, 0, 8), (1.5, 1.0, 8, 8)],
)
def test_false_claims_are_counted(x, eps, outside, unconfirmed):
    found = diagnostics(healthy, Claims(steps=1, x=x), eps=eps)
    assert (found.outside, found.unconfirmed) == (outside, unconfirmed)
    assert len(found.warnings()) == (outside > 0) + (unconfirmed > 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShortOfIt(attacks.DDN):
    """Claims success at this share of the way from each image to 0.5."""

    share: float = 1.0

    def result(self, classifier, state):
        x = state.image + self.share * (0.5 - state.image)
        return attacks.Found(x, jnp.array(True), jnp.float32(0))


def test_what_rounding_undoes_at_the_boundary_is_found_just_beyond_it():
    classifier = Classifier(None, lambda _, x: jnp.stack([jnp.full(len(x), 0.5), x[:, 0]], axis=1))
    images = np.array([[0.25], [0.4]], np.float32)
    for share, goes_on in ((1.00001, 0.0), (0.999995, 1e-5), (0.99995, 1e-4), (0.9995, 1e-3)):
        result = attacks.run(
            ShortOfIt(steps=1, share=share), classifier, images, np.zeros(2, int), key=KEY
        )
        assert result.success.all()
        assert (result.images > 0.5).all()
        expected = share * (1 + goes_on) * np.array([0.25, 0.1])
        np.testing.assert_allclose(result.distance, expected, rtol=2e-6)
        assert result.diagnostics.unconfirmed == 0
    # Neither what is farther away nor what must stay on a grid of grey levels.
    for wrong in (ShortOfIt(steps=1, share=0.99), ShortOfIt(steps=1, share=0.9999, levels=256)):
        result = attacks.run(wrong, classifier, images, np.zeros(2, int), key=KEY)
        assert not result.success.any()
        assert result.diagnostics.unconfirmed == 2


@pytest.mark.parametrize(
    ("classes", "options", "loss"),
    [(2, {}, "margin"), (3, {}, "dlr"), (3, {"targets": 2}, "margin"), (4, {"targets": 2}, "dlr")],
)
def test_a_loss_with_too_few_classes_is_replaced_and_says_so(classes, options, loss):
    attack = attacks.PGD(steps=1, loss="dlr", **options)
    found = diagnostics(lambda _, images: healthy(None, images)[:, :classes], attack)
    assert (found.asked_loss, found.loss) == ("dlr", loss)
    assert ("'margin' was used" in "".join(found.warnings())) == (loss == "margin")


def test_passes_through_the_network_are_counted():
    images = np.array([[0.1], [0.3], [0.45], [0.6]], np.float32)
    # PGD climbs 0.1 a step; class 1 begins at 0.5.
    classifier = Classifier(None, lambda _, x: jnp.stack([jnp.full(len(x), 0.5), x[:, 0]], axis=1))
    attack = Alike(steps=3, relative_step=1 / 3)
    result = attacks.run(attack, classifier, images, np.zeros(4, int), key=KEY, eps=0.3)
    assert np.array_equal(result.success, [False, True, True, True])
    # Two tries of 3 steps and a last look; a look at 0.6, the first beyond 0.5, in step 4 or in
    # the last look; at 0.55 in step 2; no attack.
    assert np.array_equal(result.backwards, [6, 3, 2, 0])
    assert np.array_equal(result.forwards, [8, 4, 3, 0])


@pytest.mark.parametrize(
    ("attack", "forwards", "backwards"),
    [
        (attacks.FAB(steps=10), 20, 10 * 2),  # of both rivals
        pytest.param(
            attacks.FAB(steps=10, random_start=True), 21, 11 * 2, marks=pytest.mark.exhaustive
        ),
        pytest.param(attacks.FAB(steps=10, targets=1), 20, 10, marks=pytest.mark.exhaustive),
        (attacks.DeepFool(), 3, 2 * 2),  # one step, one that sees where it led, and a last look
        pytest.param(attacks.DeepFool(candidates=1), 3, 2, marks=pytest.mark.exhaustive),
    ],
)
def test_passes_are_those_of_the_rivals_that_there_are(attack, forwards, backwards):
    def network(_, images):
        x = images[:, 0]
        return jnp.stack([jnp.full_like(x, 0.5), x, -x], axis=1)

    result = attacks.run(
        attack, Classifier(None, network), np.array([[0.4]], np.float32), np.zeros(1, int), key=KEY
    )
    assert result.success.all()
    assert (result.forwards, result.backwards) == (forwards, backwards)
