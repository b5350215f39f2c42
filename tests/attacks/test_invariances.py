"""What must not change a result: a budget of zero, batch size, order, devices, vmap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import attacks

NUMBER = 37
KEY = jax.random.key(7)
NORMS = ("linf", "l2", "l1", "l0", "l0_pixels")


@pytest.mark.parametrize("norm", NORMS)
def test_a_budget_of_zero_gives_the_image_bit_for_bit(norm, relu_network):
    images, labels = relu_network.examples(4)
    images[0, :3], images[0, 3:] = 0, 1  # corners of the box among the others
    images[1, 0, 0, 0] = np.finfo(np.float32).tiny
    tries = (attacks.PGD(norm=norm, steps=3), attacks.FGSM(norm=norm))

    @jax.jit
    @jax.vmap
    def iterates(image, label):
        seen = []
        for attack in tries:
            state = attack.init(
                relu_network.classifier, image, attacks.Goal(label), KEY, jnp.float32(0)
            )
            for _ in range(attack.steps):
                seen.append(state.x)
                state = attack.step(relu_network.classifier, state)
            seen.append(state.x)
        return seen

    for x in iterates(images, labels):
        assert np.array_equal(np.asarray(x).view(np.uint32), images.view(np.uint32))


def test_a_budget_of_zero_finds_nothing(relu_network):
    images, labels = relu_network.examples(4, wrong=1)
    result = attacks.run(attacks.FGSM(), relu_network.classifier, images, labels, key=KEY, eps=0.0)
    assert np.array_equal(result.images, images)
    assert np.array_equal(result.success, [False, False, False, True])
    assert np.array_equal(result.distance, [np.inf, np.inf, np.inf, 0])


ATTACKS = [
    # A budget at which about half of the examples fall, some of them only after restarts.
    (attacks.PGD(steps=15, restarts=3), 0.03),
    (attacks.DeepFool(), None),
    (attacks.SigmaZero(steps=30), None),
]


@pytest.mark.parametrize(("attack", "eps"), ATTACKS, ids=lambda value: type(value).__name__)
def test_neither_batch_size_nor_order_nor_devices_matter(attack, eps, relu_network):
    images, labels = relu_network.examples(NUMBER, wrong=3)
    indices = 100 + np.arange(NUMBER)
    order = np.random.default_rng(0).permutation(NUMBER)
    budgets = None if eps is None else np.linspace(0.5 * eps, 1.5 * eps, NUMBER)

    def run(of, **options):
        return attacks.run(
            attack,
            relu_network.classifier,
            images[of],
            labels[of],
            key=KEY,
            eps=None if eps is None else budgets[of],
            indices=indices[of],
            **options,
        )

    reference = run(np.arange(NUMBER), batch_size=64)
    if eps is not None:
        assert 0.2 < reference.success[:-3].mean() < 0.8
    assert len(jax.local_devices()) == 2
    others = {"batch_size": 3, "devices": jax.local_devices()[:1]}, {"batch_size": 8}
    for options in others:
        result = run(order, **options)
        assert np.array_equal(result.success, reference.success[order])
        np.testing.assert_allclose(result.distance, reference.distance[order], rtol=1e-4)
        np.testing.assert_allclose(result.images, reference.images[order], atol=1e-4)


def test_random_numbers_belong_to_the_index(relu_network):
    images, labels = relu_network.examples(1)
    same = np.repeat(images, 6, axis=0), np.repeat(labels, 6)
    attack, classifier = attacks.PGD(norm="l2", steps=5), relu_network.classifier
    result = attacks.run(
        attack, classifier, *same, key=KEY, eps=3.0, indices=np.array([5, 6, 5, 6, 7, 5])
    )
    assert result.success.all()
    for one, other, equal in ((0, 2, True), (0, 5, True), (1, 3, True), (0, 1, False)):
        assert np.array_equal(result.images[one], result.images[other]) == equal
    another = attacks.run(attack, classifier, *same, key=jax.random.key(8), eps=3.0)
    assert not np.array_equal(another.images[5], result.images[0])


def test_vmap_over_keys_and_over_classifiers_equals_the_loop(relu_network, other_relu_network):
    images, labels = relu_network.examples(1)
    attack = attacks.PGD(steps=4)
    networks = [relu_network.classifier, other_relu_network.classifier]
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *networks)
    keys = jax.random.split(KEY, 3)

    def found(classifier, key):
        state = attack.init(classifier, images[0], attacks.Goal(labels[0]), key, jnp.float32(0.05))
        for _ in range(attack.steps):
            state = attack.step(classifier, state)
        return state.x, attack.result(classifier, state)

    over_keys = jax.vmap(found, in_axes=(None, 0))
    both = jax.jit(jax.vmap(over_keys, in_axes=(0, None)))(stack, keys)
    loop = [[jax.jit(found)(network, key) for key in keys] for network in networks]
    stacked = jax.tree.map(
        lambda *leaves: np.reshape(leaves, (2, 3, *leaves[0].shape)),
        *(each for row in loop for each in row),
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), both, stacked)
    x = both[0]
    assert not np.allclose(x[0], x[1])
    assert not np.allclose(x[:, 0], x[:, 1])
