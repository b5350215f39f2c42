"""The runner: what it returns in all cases, restarts, confirmation, compilation, progress."""

import dataclasses
import itertools
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import attacks
from prunejax.attacks import programs
from prunejax.classifier import Classifier
from prunejax.evaluation import predict
from tests.compilations import compilations

KEY = jax.random.key(3)


class GuessState(NamedTuple):
    image: jax.Array
    goal: attacks.Goal
    key: jax.Array
    found: attacks.Found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guess(attacks.Attack):
    """Draws one random image a step and keeps the nearest: a minimum-norm attack by chance."""

    norm: str = "l2"
    steps: int = 4
    minimum_norm: ClassVar[bool] = True

    def init(self, classifier, image, goal, key, eps):
        return GuessState(image, goal, key, self.nothing_found(image))

    def step(self, classifier, state):
        key, draw = jax.random.split(state.key)
        x = jax.random.uniform(draw, state.image.shape)
        adversarial = state.goal.reached(classifier(x[None])[0])
        found = self.nearest(state.found, state.image, x, adversarial)
        return state._replace(key=key, found=found)

    def finished(self, state):
        return jnp.array(False)

    def result(self, classifier, state):
        return state.found


def test_examples_that_need_no_attack_do_not_bring_lanes_out_of_step(relu_network, monkeypatch):
    """Each batch of attacks of one length is looked at once: what ends them costs all lanes."""
    images, labels = relu_network.examples(40, wrong=13)
    order = np.random.default_rng(0).permutation(40)
    compiled_of, settled = programs.compiled, []

    def watched(attack, mesh):
        compiled = compiled_of(attack, mesh)

        def settle(*args):
            settled.append(attack)
            return compiled.settle(*args)

        return compiled._replace(settle=settle)

    monkeypatch.setattr(programs, "compiled", watched)
    result = attacks.run(
        Guess(steps=30),
        relu_network.classifier,
        images[order],
        labels[order],
        key=KEY,
        batch_size=8,
    )
    assert np.array_equal(result.distance == 0, order >= 27)
    assert np.array_equal(result.forwards, np.where(order >= 27, 0, 31))
    assert len(settled) == -(-27 // 8)


def test_misclassified_examples_are_left_alone(relu_network):
    images, labels = relu_network.examples(5, wrong=2)
    for attack, eps in ((Guess(), None), (attacks.FGSM(), 1.0)):
        result = attacks.run(attack, relu_network.classifier, images, labels, key=KEY, eps=eps)
        assert result.success[3:].all()
        assert np.array_equal(result.distance == 0, [False, False, False, True, True])
        assert np.array_equal(result.images[3:], images[3:])


def test_all_examples_misclassified(relu_network):
    images, labels = relu_network.examples(11, wrong=11)
    classifier = relu_network.classifier
    result = attacks.run(Guess(), classifier, images, labels, key=KEY, batch_size=2)
    assert result.success.all()
    assert np.array_equal(result.images, images)
    assert not result.distance.any()


def test_nothing_found(relu_network):
    images, _ = relu_network.examples(5)
    classifier = Classifier(None, lambda _, x: jnp.zeros((len(x), 3)).at[:, 1].set(1.0))
    for attack, eps in ((Guess(), None), (attacks.FGSM(norm="l2"), 0.5)):
        result = attacks.run(attack, classifier, images, np.full(5, 1), key=KEY, eps=eps)
        assert not result.success.any()
        assert np.array_equal(result.distance, np.full(5, np.inf))
        assert np.array_equal(result.images, images)


@pytest.mark.parametrize("number", [1, 2, 7, 13])
def test_any_number_of_examples(number, relu_network):
    images, labels = relu_network.examples(13)
    run = {"key": KEY, "batch_size": 4}
    everything = attacks.run(Guess(), relu_network.classifier, images, labels, **run)
    some = attacks.run(Guess(), relu_network.classifier, images[:number], labels[:number], **run)
    assert some.images.shape == (number, *images.shape[1:])
    for part, whole in zip(some[:5], everything[:5], strict=True):
        assert np.array_equal(part, whole[:number])


def test_restarts_of_a_minimum_norm_attack_keep_the_nearest(relu_network):
    images, labels = relu_network.examples(20)
    runs = [
        attacks.run(Guess(restarts=restarts), relu_network.classifier, images, labels, key=KEY)
        for restarts in (1, 2, 4)
    ]
    for fewer, more in itertools.pairwise(runs):
        assert np.all(more.distance <= fewer.distance)
        assert np.any(more.distance < fewer.distance)
        kept = more.distance == fewer.distance
        assert np.any(kept)
        assert np.array_equal(more.images[kept], fewer.images[kept])
    delta = (runs[-1].images - images).reshape(20, -1)
    np.testing.assert_allclose(runs[-1].distance, np.linalg.norm(delta, axis=1), rtol=1e-5)


def test_restarts_of_a_budget_attack_are_for_survivors(relu_network):
    images, labels = relu_network.examples(60)
    runs = [
        attacks.run(
            attacks.PGD(norm="linf", steps=2, restarts=restarts),
            relu_network.classifier,
            images,
            labels,
            key=KEY,
            eps=0.04,
            batch_size=16,
        )
        for restarts in (1, 8)
    ]
    once, often = runs
    assert once.success.sum() < often.success.sum() < 60
    assert np.all(often.success[once.success])
    assert np.array_equal(often.images[once.success], once.images[once.success])
    assert np.array_equal(often.distance[once.success], once.distance[once.success])


def test_success_stands_up_to_an_independent_forward_pass(relu_network):
    images, labels = relu_network.examples(60, wrong=4)
    eps = np.linspace(0.01, 0.1, 60) * 4
    attack = attacks.PGD(norm="l2", steps=10)
    result = attacks.run(attack, relu_network.classifier, images, labels, key=KEY, eps=eps)
    assert 0.2 < result.success.mean() < 0.9
    assert result.images.min() >= 0
    assert result.images.max() <= 1
    delta = (result.images.astype(np.float64) - images).reshape(60, -1)
    assert np.all(np.linalg.norm(delta, axis=1) <= eps * (1 + 1e-6) + 1e-6)
    predicted = relu_network.logits(result.images).argmax(axis=1)
    assert np.array_equal(predicted != labels, result.success)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Boastful(Guess):
    """Claims success whatever it has, at whatever distance, in or out of the box."""

    x: float
    claimed: float = 0.01
    norm: str = "linf"
    minimum_norm: ClassVar[bool] = False

    def result(self, classifier, state):
        x = jnp.full_like(state.image, self.x)
        return attacks.Found(x, jnp.array(True), jnp.float32(self.claimed))


@pytest.mark.parametrize(
    ("x", "success", "distance"),
    [
        (0.7, True, 0.5),  # adversarial, and at the budget
        (0.75, False, np.inf),  # beyond the budget
        (0.3, False, np.inf),  # not adversarial
        (-5.0, True, 0.2),  # clipped to the box, where it is adversarial and measured again
    ],
)
def test_claims_are_not_believed(x, success, distance):
    images = np.full((3, 2), 0.2, np.float32)
    classifier = Classifier(None, _label_one_outside)
    result = attacks.run(
        Boastful(x=x), classifier, images, np.zeros(3, int), key=KEY, eps=0.5, batch_size=4
    )
    assert np.array_equal(result.success, [success] * 3)
    np.testing.assert_allclose(result.distance, distance, rtol=1e-6)
    expected = np.full_like(images, np.clip(x, 0, 1)) if success else images
    assert np.array_equal(result.images, expected)


def _label_one_outside(_, images):
    """Class 0 between 0.1 and 0.5, class 1 elsewhere."""
    x = images[:, 0]
    return jnp.stack([jnp.zeros_like(x), jnp.abs(x - 0.3) - 0.2], axis=1)


def _sawtooth(_, images):
    """Class 1 between 0.5 and 0.6 only, though its logit rises towards 1 on either side."""
    x = images[:, 0]
    return jnp.stack([jnp.zeros_like(x), jnp.where(x < 0.6, x - 0.5, x - 1.2)], axis=1)


def test_an_adversarial_iterate_is_kept_when_the_attack_leaves_it():
    attack = attacks.PGD(steps=10, relative_step=0.1, random_start=False)
    classifier = Classifier(None, _sawtooth)
    images, labels = np.array([[0.3]], np.float32), np.array([0])

    state = attack.init(classifier, images[0], attacks.Goal(labels[0]), KEY, jnp.float32(0.6))
    for _ in range(attack.steps):
        state = attack.step(classifier, state)
    np.testing.assert_allclose(state.x, 0.9, rtol=1e-6)  # the last iterate, of class 0

    result = attacks.run(attack, classifier, images, labels, key=KEY, eps=0.6)
    np.testing.assert_allclose(result.images, [[0.54]], rtol=1e-6)
    np.testing.assert_allclose(result.distance, [0.24], rtol=1e-5)
    assert result.success.all()


def test_the_last_iterate_counts():
    attack = attacks.PGD(steps=4, relative_step=0.25, random_start=False)
    images = np.array([[0.3]], np.float32)
    # 0.36, 0.42, 0.48, 0.54: only the fourth step ends in class 1
    classifier = Classifier(None, _sawtooth)
    result = attacks.run(attack, classifier, images, np.array([0]), key=KEY, eps=0.24)
    assert result.success.all()
    np.testing.assert_allclose(result.distance, [0.24], rtol=1e-5)


def _sine(weights, images):
    score = jnp.sin(images.reshape(len(images), -1) @ weights)
    return jnp.stack([jnp.zeros_like(score), score], axis=1)


@pytest.mark.parametrize("attack", [Guess(restarts=2), attacks.FGSM()])
def test_other_numbers_of_examples_and_survivors_compile_nothing(attack):
    rng = np.random.default_rng(0)
    classifier = Classifier(rng.normal(size=6).astype(np.float32), _sine)
    images = rng.uniform(size=(40, 3, 2)).astype(np.float32)
    labels = (np.sin(images.reshape(40, -1) @ classifier.variables) > 0).astype(int)

    def run(number, classifier, eps):
        eps = None if attack.minimum_norm else eps
        attacks.run(
            attack, classifier, images[:number], labels[:number], key=KEY, eps=eps, batch_size=16
        )

    with compilations() as compiled:
        run(40, classifier, 0.01)
    assert len(compiled) > 2
    for number, scale, eps in ((37, 1, 0.1), (40, 2, 1.0), (16, 3, 0.0), (9, 3, 0.3)):
        with compilations() as compiled:
            run(number, Classifier(scale * classifier.variables, _sine), eps)
        assert not compiled


@pytest.mark.filterwarnings("ignore:Explicitly requested dtype float64")
@pytest.mark.parametrize(
    "attack", [attacks.DDN(steps=3), attacks.APGD(steps=5), attacks.Square(steps=9)]
)
def test_double_precision_elsewhere_changes_nothing(attack, relu_network):
    images, labels = relu_network.examples(9, wrong=1)
    classifier, eps = relu_network.classifier, None if attack.minimum_norm else 0.05
    expected = attacks.run(attack, classifier, images, labels, key=KEY, eps=eps)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), classifier)
        for network in (classifier, wide):
            found = attacks.run(attack, network, images, labels, key=KEY, eps=eps)
            assert found.images.dtype == np.float32
            np.testing.assert_array_equal(found.images, expected.images)
            np.testing.assert_array_equal(found.distance, expected.distance)
            assert np.array_equal(predict(network, images), predict(classifier, images))


@pytest.mark.parametrize(("restarts", "batch_size"), [(1, 4), (3, 4), (3, 64)])
def test_progress_rises_to_the_end(restarts, batch_size, relu_network):
    images, labels = relu_network.examples(21, wrong=2)
    calls = []
    attacks.run(
        Guess(restarts=restarts),
        relu_network.classifier,
        images,
        labels,
        key=KEY,
        batch_size=batch_size,
        progress=lambda *numbers: calls.append(numbers),
    )
    done = [number for number, _ in calls]
    assert all(total == 21 for _, total in calls)
    assert done == sorted(done)
    assert done[0] >= 0
    assert calls[-1] == (21, 21)
    assert len(calls) > 1


def test_arguments_are_left_as_they_were(relu_network):
    images, labels = relu_network.examples(6, wrong=1)
    before = images.copy(), labels.copy()
    result = attacks.run(Guess(), relu_network.classifier, images, labels, key=KEY)
    result.images[:] = -1
    assert np.array_equal(images, before[0])
    assert np.array_equal(labels, before[1])


def test_sizes_are_in_every_norm(relu_network):
    """A colour image: features and pixels differ."""
    images = np.full((2, 2, 2, 3), 0.5, np.float32)
    classifier = Classifier(
        None, lambda _, x: jnp.stack([jnp.full(len(x), 5.5), x.sum((1, 2, 3))], 1)
    )
    # 6.0 is class 1 already; with label 1 the sum has to fall below 5.5.
    images[1] = 0.0
    attack = attacks.PGD(norm="l0_pixels", steps=3, random_start=False)
    result = attacks.run(attack, classifier, images, np.array([1, 0]), key=KEY, eps=1)
    assert np.array_equal(result.success, [True, False])
    expected = {"linf": 0.5, "l2": 0.5 * np.sqrt(3), "l1": 1.5, "l0": 3, "l0_pixels": 1}
    for norm, size in result.sizes.items():
        np.testing.assert_allclose(size, [expected[norm], 0], rtol=1e-6)


@pytest.mark.parametrize("kind", ["rbg", "unsafe_rbg"])
def test_keys_of_which_a_batch_draws_from_the_first_alone_draw_each_for_itself(kind):
    network = Classifier(None, lambda _, x: jnp.stack([0 * x[:, 0], x.sum(1) - 3.01], axis=1))
    images, labels, indices = np.full((8, 6), 0.5, np.float32), np.zeros(8, int), np.arange(8)
    attack = attacks.PGD(norm="l2", steps=1)
    key = jax.random.key(3, impl=kind)
    some, turned, usual = (
        attacks.run(attack, network, images, labels, key=key, eps=1.0, indices=indices)
        for key, indices in ((key, indices), (key, indices[::-1]), (jax.random.key(3), indices))
    )
    assert len(np.unique(some.images, axis=0)) == 8
    np.testing.assert_array_equal(some.images, turned.images[::-1])
    np.testing.assert_array_equal(some.images, usual.images)


def test_an_example_without_a_start_stops_nobody_who_has_one():
    """All noise is of class 0: a start for the image of class 1, none for that of class 0."""

    def logits(_, images):  # class 1 in a ball around 0.95, with a radius of 0.04 in each entry
        score = 0.04**2 - jnp.mean((images - 0.95) ** 2, axis=1)
        return jnp.stack([jnp.zeros_like(score), score], axis=1)

    images = np.stack([np.full(64, 0.4, np.float32), np.full(64, 0.94, np.float32)])
    attack = attacks.BrendelBethge(norm="l2", steps=50)
    labels = np.arange(2)
    result = attacks.run(attack, Classifier(None, logits), images, labels, key=KEY, batch_size=2)
    assert np.array_equal(result.success, [False, True])
    assert np.array_equal(result.images[0], images[0])
    assert result.forwards[0] == 300 + 10 + 1
    # Radially outwards, all 64 entries alike.
    np.testing.assert_allclose(result.distance, [np.inf, 0.03 * 8], rtol=1e-2)
