"""APGD: exact on linear networks, and each of its rules against a plain reading of the papers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import attacks, norms
from prunejax.attacks import apgd, apgd_l1, losses
from prunejax.attacks.attack import logits_of
from prunejax.attacks.goal import Goal
from tests.attacks.test_closed_form import KEY, check_budgets, length, nearest_class
from tests.linear_models import minimum_distances, random_linear

STEPS = 100


@pytest.mark.parametrize(
    ("shape", "classes", "attack", "above"),
    [
        ((20,), 3, attacks.APGD(targeted=True, loss="margin"), 1.02),
        ((7, 5, 1), 10, attacks.APGD(norm="l2", targets=9, loss="dlr"), 1.02),
        ((16, 12, 3), 2, attacks.APGDL1(larger_budgets=True), 1.05),
        *(
            pytest.param(
                (32, 24, 3),
                2,
                attacks.APGDL1(larger_budgets=larger),
                1.02,
                marks=pytest.mark.exhaustive,
            )
            for larger in (False, True)
        ),
    ],
)
def test_the_nearest_class_is_reached(shape, classes, attack, above, linear_classifier):
    problem = random_linear(0, shape, classes)
    labels, distances = problem.labels, minimum_distances(problem, attack.norm)
    if attack.targeted:
        labels, distances = nearest_class(problem, attack.norm)
    classifier = linear_classifier(problem)
    check_budgets(attack, classifier, problem, labels, distances, below=0.99, above=above)


def test_checkpoints_are_those_of_the_paper():
    for steps in (100, 200, 1000):
        p = [0, 22 * steps // 100]
        while p[-1] <= steps:
            p.append(p[-1] + max(p[-1] - p[-2] - 3 * steps // 100, 6 * steps // 100))
        windows = apgd.windows(steps)
        assert np.flatnonzero(windows).tolist() == p[1:-1]
        assert windows[p[1:-1]].tolist() == np.diff(p[:-1]).tolist()
    windows = apgd.windows(100)
    assert windows[windows > 0].tolist() == [22, 19, 16, 13, 10, 7, 6, 6]
    assert apgd.windows(1).tolist() == [0, 1]  # no window is empty


def test_stages_of_the_sparse_attack():
    checkpoints, budgets = apgd_l1.schedule(100, larger_budgets=True)
    assert budgets.tolist() == 30 * [3] + 30 * [2] + 41 * [1]
    inside = [t for begin, end in ((0, 30), (30, 60)) for t in range(begin + 1, end)]
    assert np.flatnonzero(checkpoints).tolist() == inside + list(range(61, 100))
    assert np.flatnonzero(apgd_l1.schedule(100).checkpoints).tolist() == list(range(4, 100, 4))
    for steps in range(1, 12):
        assert apgd_l1.schedule(steps, larger_budgets=True).budgets[-1] == 1


@pytest.mark.parametrize(
    "attack",
    [attacks.APGD(), attacks.APGD(norm="l2"), attacks.APGDL1()],
    ids=lambda attack: attack.norm,
)
@pytest.mark.parametrize("eps", [0.2, 0.0])
def test_starts_on_the_sphere(attack, eps):
    image, goal = jnp.full((3, 2, 1), 0.5), Goal(jnp.array(0))
    x = attack.init(None, image, goal, KEY, jnp.array(eps)).x
    delta = np.asarray(x - image)
    assert length(delta[None], attack.norm)[0] == pytest.approx(eps, rel=1e-6)
    assert np.any(delta) == (eps > 0)


class Iterates:
    """All iterates of an attack on the ReLU network, with loss and gradient of each."""

    def __init__(self, attack, network, eps, example):
        image, label = (array[example] for array in network.examples(8))
        goal, classifier = Goal(jnp.asarray(label)), network.classifier

        def body(state, _):
            logits = logits_of(classifier, state.x)
            seen = state.x, losses.cross_entropy(logits, goal), goal.reached(logits)
            return attack.step(classifier, state), seen

        @jax.jit
        def run(image):
            state = attack.init(classifier, image, goal, KEY, jnp.array(eps))
            state, seen = jax.lax.scan(body, state, length=STEPS)
            return seen, state

        (self.x, self.f, self.adversarial), state = jax.device_get(run(image))
        self.x = np.concatenate([self.x, state.x[None]])
        self.found, self.image, self.eps = state.found, image, eps
        self.gradient = _gradients(network, self.x[:STEPS], label)

    def best(self, t: int, since: int = 0) -> int:
        return since + int(np.argmax(self.f[since : t + 1]))


def _gradients(network, images, label):
    """Of the cross-entropy, by hand, in float64."""
    V, a, W = (network.variables[key].astype(np.float64) for key in "VaW")
    hidden = images.reshape(len(images), -1).astype(np.float64) @ V + a
    odds = np.exp(network.logits(images))
    residual = odds / odds.sum(axis=1, keepdims=True) - np.eye(network.classes)[label]
    return (((residual @ W.T) * (hidden > 0)) @ V.T).reshape(images.shape)


@pytest.fixture(scope="module")
def project():
    return {
        norm: jax.jit(jax.vmap(norms.get(norm).project, in_axes=(0, None, None)))
        for norm in ("linf", "l2", "l1")
    }


@pytest.mark.parametrize(
    ("norm", "eps", "rho", "example", "seen"),
    [("linf", 0.05, 0.75, 0, (True, False)), ("l2", 0.5, 0.3, 1, (False, True))],
)
def test_momentum_and_halving(norm, eps, rho, example, seen, relu_network, project):
    it = Iterates(attacks.APGD(norm=norm, rho=rho), relu_network, eps, example)
    etas, sources = [], []
    eta, halved, highest, last, windows = 2 * eps, True, None, 0, [22, 19, 16, 13, 10, 7, 6, 6]
    outcomes = []
    for t in range(STEPS):
        source = t
        if windows and t == last + windows[0]:
            rises = sum(it.f[i + 1] > it.f[i] for i in range(last, t))
            few = bool(rises <= rho * windows[0])
            no_gain = bool(not halved and it.f[it.best(t)] == highest)
            outcomes.append((few, no_gain))
            halved, highest, last, windows = few or no_gain, it.f[it.best(t)], t, windows[1:]
            if halved:
                eta, source = eta / 2, it.best(t)
        etas.append(eta)
        sources.append(source)
    assert {seen, (False, False)} <= set(outcomes)  # each rule has decided, and neither

    x = it.x[sources].astype(np.float64)
    previous = np.concatenate([x[:1], x[:-1]])
    g = it.gradient[sources]
    s = np.sign(g) if norm == "linf" else g / np.sqrt((g**2).sum(axis=(1, 2, 3), keepdims=True))
    eta, alpha = np.reshape(etas, (-1, 1, 1, 1)), np.full((STEPS, 1, 1, 1), 0.75)
    alpha[0] = 1
    z = it.image + project[norm](x + eta * s - it.image, it.image, eps)
    ahead = x + alpha * (z - x) + (1 - alpha) * (x - previous)
    expected = it.image + project[norm](ahead - it.image, it.image, eps)
    np.testing.assert_allclose(it.x[1:], expected, atol=2e-6)


def test_sparse_steps(relu_network, project):
    eps, d = 1.0, 30
    it = Iterates(attacks.APGDL1(share=2 / 3), relu_network, eps, example=0)
    eta, k, changed, ahead, kept = eps, d // 5, d, [], []
    for t in range(STEPS):
        source = t
        if t > 0 and t % 4 == 0:
            now = np.sum(it.x[it.best(t)] != it.image)
            kept.append(now >= 0.95 * changed)
            if kept[-1]:
                eta = max(eta / 1.5, eps / 10)
            else:
                eta, source = eps, it.best(t)
            k, changed = int(np.ceil(now / 1.5)), now
        g = it.gradient[source].ravel()
        s = np.where(np.argsort(np.argsort(-np.abs(g))) < k, np.sign(g), 0) / k
        ahead.append(it.x[source] + eta * s.reshape(it.image.shape))
    assert set(kept) == {True, False}
    expected = it.image + project["l1"](np.array(ahead) - it.image, it.image, eps)
    np.testing.assert_allclose(it.x[1:], expected, atol=2e-6)


def test_larger_budgets_come_first(relu_network, project):
    eps = 0.5
    it = Iterates(attacks.APGDL1(larger_budgets=True), relu_network, eps, example=0)
    lengths = length(it.x - it.image, "l1")
    for begin, end, budget in ((0, 30, 3), (30, 60, 2), (60, STEPS + 1, 1)):
        assert lengths[begin:end].max() == pytest.approx(budget * eps, rel=1e-5)
    for begin, end, budget in ((0, 30, 2), (30, 60, 1)):
        best = it.x[it.best(end - 1, begin)]
        start = it.image + project["l1"]((best - it.image)[None], it.image, budget * eps)[0]
        np.testing.assert_allclose(it.x[end], start, atol=1e-6)
    counts = it.adversarial & (lengths[:STEPS] <= eps * (1 + 1e-6))
    assert it.adversarial[:60].any()
    assert not counts[:60].any()
    assert it.found.success == counts.any()


def test_the_first_adversarial_iterate_is_kept(relu_network):
    it = Iterates(attacks.APGD(), relu_network, 0.15, example=0)
    first = int(np.argmax(it.adversarial))
    assert first > 0
    np.testing.assert_array_equal(it.found.image, it.x[first])
