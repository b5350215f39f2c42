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


@pytest.mark.parametrize(
    ("attack", "budgets"),
    [
        (attacks.PGD(norm="l2", steps=4), np.float32([0.05, 1.0])),
        (attacks.FMN(norm="l1", steps=6), np.float32([np.inf, np.inf])),
    ],
)
def test_vmap_over_networks_targets_keys_and_budgets_equals_the_loop(
    attack, budgets, relu_network, other_relu_network
):
    image = relu_network.examples(1)[0][0]
    networks = [relu_network.classifier, other_relu_network.classifier]
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *networks)
    targets, keys = np.arange(2), jax.random.split(KEY, 2)

    def find(classifier, target, key, eps):
        return attack.find(classifier, image, attacks.Goal(None, target), key, eps)

    every = find
    for axis in reversed(range(4)):
        every = jax.vmap(every, in_axes=[0 if place == axis else None for place in range(4)])
    found = jax.jit(every)(stack, targets, keys, budgets)
    assert found.success.shape == (2, 2, 2, 2)
    single = jax.jit(find)
    for at in np.ndindex(2, 2, 2, 2):
        alone = single(networks[at[0]], targets[at[1]], keys[at[2]], budgets[at[3]])
        assert found.success[at] == alone.success
        np.testing.assert_allclose(found.image[at], alone.image, atol=1e-5)
        np.testing.assert_allclose(found.distance[at], alone.distance, rtol=1e-4)
    assert np.any(found.success)
    assert np.all(found.success) == attack.minimum_norm
    for axis in range(2):  # other networks and targets are attacked in other ways
        assert not np.allclose(*np.split(np.asarray(found.image), 2, axis))
