"""Square: its schedule, its bumps and its proposals against the published rules; its strength."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from prunejax import attacks
from prunejax.attacks import programs, square
from prunejax.attacks.goal import Goal
from prunejax.attacks.random_search import Point, flipped
from prunejax.classifier import Classifier
from tests.attacks.random_walks import assert_search_is_sound, walk
from tests.attacks.test_closed_form import check_budgets
from tests.linear_models import minimum_distances, random_linear

KEY = jax.random.key(0)


def published_p(query: int) -> float:
    """p over p_init: the table of the paper's appendix."""
    for last, p in ((10, 1), (50, 1 / 2), (200, 1 / 4), (500, 1 / 8), (1000, 1 / 16)):
        if query <= last:
            return p
    for last, p in ((2000, 1 / 32), (4000, 1 / 64), (6000, 1 / 128), (8000, 1 / 256)):
        if query <= last:
            return p
    return 1 / 512


QUERIES = np.r_[0:60, 195:205, 495:505, 995:1005, 1999:2003, 3999:4003, 5999:6003, 7999:8003, 9999]


@pytest.mark.parametrize(("side", "p_init"), [(28, 0.8), (32, 0.3), (224, 0.05)])
def test_windows_follow_the_published_schedule(side, p_init):
    for norm, least, odd in (("linf", 1, 0), ("l2", 3, 1), ("l1", 3, 1)):
        attack = attacks.Square(norm=norm, p_init=p_init)
        sizes = jax.vmap(lambda q, a=attack: jnp.stack(a.window(q, side, side)))(QUERIES)
        for query, size in zip(QUERIES, sizes, strict=True):
            s = max(round(np.sqrt(p_init * published_p(query) * side**2)), least)
            assert tuple(size) == (s | odd, s | odd)


def test_the_schedule_can_be_rescaled():
    attack = attacks.Square(steps=500, rescale_schedule=True)
    stretched = [int(q * 10_000 / 500) for q in range(500)]
    sizes = jax.vmap(lambda q: attack.window(q, 28, 28)[0])(np.arange(500))
    wanted = [max(round(np.sqrt(0.8 * published_p(q) * 784)), 1) for q in stretched]
    assert sizes.tolist() == wanted


def test_windows_on_oblong_images_keep_their_share():
    window = attacks.Square().window
    assert tuple(map(int, window(0, 20, 45))) == (20, 36)  # 0.8 of 900 pixels
    assert tuple(map(int, window(100, 20, 45))) == (13, 13)  # sqrt(180) = 13.4
    assert tuple(map(int, window(0, 50, 1))) == (40, 1)
    assert tuple(map(int, attacks.Square(norm="l2").window(300, 50, 1))) == (5, 1)


def rectangle(height: int, width: int, exponent: int) -> np.ndarray:
    """The bump of one half, by adding up rectangles."""
    bump = np.zeros((height, width))
    for c in range(max(height, width) // 2 + 1):
        top, left = height // 2 - c, width // 2 - c
        bump[max(top, 0) : top + 2 * c + 1, max(left, 0) : left + 2 * c + 1] += (
            c + 1.0
        ) ** -exponent
    return bump


@pytest.mark.parametrize(("norm", "order", "exponent"), [("l2", 2, 2), ("l1", 1, 4)])
def test_bumps_are_the_sum_of_rectangles(norm, order, exponent):
    bump = jax.jit(attacks.Square(norm=norm).bump)
    for s, row, column in ((3, 2, 1), (5, 0, 3), (7, 0, 0), (9, 1, 0)):
        halves = [rectangle(s // 2, s, exponent), -rectangle(s - s // 2, s, exponent)]
        eta = np.concatenate([half / np.linalg.norm(half.ravel(), order) for half in halves])
        eta /= np.linalg.norm(eta.ravel(), order)
        for turned in (False, True):
            wanted = np.zeros((10, 9))
            wanted[row : row + s, column : column + s] = eta.T if turned else eta
            got = bump(np.arange(10) - row, np.arange(9) - column, (s, s), turned)
            np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_flipped_colours_are_all_the_other_ones_equally_often():
    keys = jax.random.split(KEY, 7000)
    corner = np.array([True, False, True])
    other = np.asarray(jax.vmap(lambda key: flipped(key, corner))(keys)) @ [4, 2, 1]
    counts = np.bincount(other, minlength=8)
    assert counts[5] == 0
    assert np.all(np.abs(np.delete(counts, 5) - 1000) < 150)
    assert not flipped(KEY, np.array([True]))[0]


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        ("linf", (7, 5, 1)),
        pytest.param("l2", (13, 11, 3), marks=pytest.mark.exhaustive),
        ("l1", (9, 14)),
        pytest.param("l1", (12,), marks=pytest.mark.exhaustive),
    ],
)
def test_every_query_is_within_ball_and_box(norm, shape, linear_classifier):
    problem = random_linear(0, shape)
    eps = minimum_distances(problem, norm) * np.array([0, 0.5, 1.3, 1.3, 2, 2, 3, 3])
    attack = attacks.Square(norm=norm, steps=200, rescale_schedule=True)
    seen = walk(attack, problem, linear_classifier(problem), eps, 200)
    assert_search_is_sound(seen, problem, norm, eps)
    assert np.array_equal(
        seen.proposals[:, 0], np.tile(problem.images[0], (200, *[1] * len(shape)))
    )


def test_linf_changes_one_window_to_an_edge_of_the_ball(linear_classifier):
    problem = random_linear(1, (9, 7, 3))
    attack = attacks.Square(p_init=0.3)
    seen = walk(attack, problem, linear_classifier(problem), 0.05, 60)
    up, down = (np.clip(problem.images + sign * np.float32(0.05), 0, 1) for sign in (1, -1))
    stripes = seen.accepted[0]
    assert np.all((stripes == up).all(axis=1) | (stripes == down).all(axis=1))
    for before, proposal, query in zip(seen.accepted, seen.proposals, range(60), strict=False):
        s = max(round(np.sqrt(0.3 * published_p(query) * 63)), 1)
        for b, p, u, d in zip(before, proposal, up, down, strict=True):
            changed = np.argwhere(np.any(b != p, axis=2))
            assert len(changed)  # signs that change nothing are drawn anew
            assert np.all(np.ptp(changed, axis=0) < s)
            spot = p[changed[:, 0], changed[:, 1]]
            ups = spot == u[changed[:, 0], changed[:, 1]]
            downs = spot == d[changed[:, 0], changed[:, 1]]
            assert np.all(ups.all(axis=0) | downs.all(axis=0))


def test_windows_are_put_everywhere_and_differ_between_keys(linear_classifier):
    problem = random_linear(2, (6, 5, 1), examples=8)
    attack = attacks.Square(p_init=0.03)  # single pixels
    seen = walk(attack, problem, linear_classifier(problem), 1e-3, 60)
    changed = (seen.proposals != seen.accepted[:-1])[..., 0]
    assert np.all(changed.sum(axis=(2, 3)) == 1)
    assert changed.any(axis=(0, 1)).all()
    assert np.mean((changed[:, 0] & changed[:, 1]).any(axis=(1, 2))) < 0.2


def reference_move(delta, eta, sign, first, second, eps, norm):
    """The published move of mass between two windows, in float64, [H, W, C]."""
    order = 2 if norm == "l2" else 1
    channels = delta.shape[2]

    def lengths(array):
        return np.linalg.norm(array.reshape(-1, channels), order, axis=0)

    of_first = np.where(first[..., None], delta, 0)
    of_both = np.where((first | second)[..., None], delta, 0)
    nu = eta[..., None] * sign + of_first / (1e-12 + lengths(of_first))
    total = np.linalg.norm(delta.ravel(), order)
    if norm == "l2":
        target = np.sqrt(max(eps**2 - total**2, 0) / channels + lengths(of_both) ** 2)
    else:
        target = (max(eps - total, 0) / channels + lengths(of_both)) * channels
    nu = nu / (1e-12 + lengths(nu)) * target
    return np.where(first[..., None], nu, np.where(second[..., None], 0, delta))


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_mass_moves_as_published(norm, monkeypatch):
    attack, eps = attacks.Square(norm=norm, p_init=0.2), 0.5
    rng = np.random.default_rng(0)
    image = rng.uniform(0.3, 0.7, (8, 6, 2)).astype("f4")  # the box is out of the way
    best = attack.start(KEY, image, eps).x
    kept = {}

    def bump(self, *place):
        kept.update(place=place[:3], eta=original(self, *place))
        return kept["eta"]

    def within(self, planes, image, eps):
        kept.update(planes=planes)
        return image

    def propose(key):
        zero = jnp.array(0)
        state = attacks.RandomSearchState(
            image, Goal(zero), jnp.float32(eps), key, key, zero, Point(best), jnp.array(0.0), False
        )
        attack.propose(key, state)
        return kept

    original = attacks.Square.bump
    monkeypatch.setattr(attacks.Square, "bump", bump)
    monkeypatch.setattr(attacks.Square, "_within", within)
    moves = jax.device_get(jax.jit(jax.vmap(propose))(jax.random.split(KEY, 20)))
    delta = np.asarray(best - image, np.float64)
    signs, moved = set(), 0
    for number in range(20):
        (rows, columns, size), eta, planes = jax.tree.map(
            lambda part, n=number: part[n], (moves["place"], moves["eta"], moves["planes"])
        )
        first = ((rows >= 0) & (rows < size[0]))[:, None] & ((columns >= 0) & (columns < size[1]))
        fits = []
        for second in all_windows(image.shape, size):
            for sign in itertools.product((1, -1), repeat=2):
                wanted = reference_move(delta, eta, sign, first, second, eps, norm)
                error = np.abs(wanted - planes.T.reshape(image.shape)).max()
                fits.append((error, sign, np.any(second & ~first)))
        error, sign, moves_mass = min(fits)
        assert error < 1e-5
        signs.add(sign)
        moved += moves_mass
    assert len(signs) == 4
    assert moved


def all_windows(shape, size):
    for row in range(shape[0] - size[0] + 1):
        for column in range(shape[1] - size[1] + 1):
            window = np.zeros(shape[:2], bool)
            window[row : row + size[0], column : column + size[1]] = True
            yield window


@pytest.mark.parametrize(
    ("norm", "shape", "targeted", "factor"),
    [
        ("linf", (7, 5, 1), True, 1.25),
        ("l2", (20,), False, 1.25),
        pytest.param("l1", (20,), False, 1.25, marks=pytest.mark.exhaustive),
        # A bump covers 3 x 3 pixels at least, with a half of either sign: no sum of them comes
        # nearer to weights that are independent from pixel to pixel.
        pytest.param("l2", (7, 5, 1), False, 1.5, marks=pytest.mark.exhaustive),
    ],
)
def test_succeeds_near_the_optimum(norm, shape, targeted, factor, linear_classifier):
    attack = attacks.Square(
        norm=norm, steps=1000, rescale_schedule=True, restarts=2, targeted=targeted
    )
    problem = random_linear(0, shape, classes=2)
    labels = 1 - problem.labels if targeted else problem.labels
    distances, classifier = minimum_distances(problem, norm), linear_classifier(problem)
    result = check_budgets(attack, classifier, problem, labels, distances, above=factor)
    assert np.all(result.backwards == 0)
    assert np.all(result.forwards <= 2 * 1001)


def test_images_of_too_many_axes():
    with pytest.raises(ValueError, match="images has shape"):
        attacks.Square().start(KEY, np.zeros((2, 2, 2, 2), "f4"), 0.1)


@pytest.mark.parametrize(
    ("attack", "shape", "small"),
    [
        (attacks.Square(), (28, 28, 1), 6),
        (attacks.Square(p_init=0.05), (30, 40, 3), 6),
        (attacks.Square(steps=300, rescale_schedule=True), (12, 12, 3), 5),
        (attacks.Square(steps=50), (28, 28, 1), 0),  # ends before windows are small
        (attacks.Square(norm="l2"), (28, 28, 1), 0),  # every query changes the whole image
        (attacks.Square(), (784,), 0),
    ],
)
def test_stages_follow_the_schedule(attack, shape, small):
    stages = attack.stages(shape)
    assert sum(steps for _, steps in stages) == attack.steps
    assert len(set(stages)) == len(stages)
    assert sum(isinstance(part, square.SmallWindows) for part, _ in stages) == small
    if not small:
        return
    windows, begin = attack.sides(*shape[:2])[attack.halvings(np.arange(attack.steps))], 0
    for part, steps in stages:
        own, begin = windows[begin : begin + steps], begin + steps
        assert np.all((4 * own.prod(axis=1) <= np.prod(shape[:2])) == (part != attack))
        assert part == attack or np.all(own == part.size)


@pytest.fixture(scope="module")
def integer_network():
    """A convolutional network and images in which float32 rounds nothing, and correct labels."""
    rng = np.random.default_rng(0)
    variables = {
        "first": rng.integers(-2, 3, (3, 3, 2, 4)),
        "second": rng.integers(-2, 3, (3, 3, 4, 4)),
        "dense": rng.integers(-2, 3, (6 * 5 * 4, 4)),
    }
    variables = jax.tree.map(lambda w: w.astype(np.float32), variables)

    def apply(variables, x):
        for name, stride in (("first", 1), ("second", 2)):
            numbers = ("NHWC", "HWIO", "NHWC")
            x = jax.lax.conv_general_dilated(
                x, variables[name], (stride, stride), "SAME", dimension_numbers=numbers
            )
            x = jax.nn.relu(x)
        return x.reshape(len(x), -1) @ variables["dense"]

    classifier = Classifier(variables, apply)
    images = (rng.integers(0, 65, (21, 12, 10, 2)) / 64).astype("f4")
    return classifier, images, np.asarray(classifier(images).argmax(axis=1))


@pytest.mark.parametrize("restarts", [1, 2])
def test_stages_of_small_windows_change_nothing(restarts, integer_network, monkeypatch):
    """Bit for bit, in full groups and in others, on several devices and on one."""
    classifier, images, labels = integer_network
    attack = attacks.Square(steps=300, rescale_schedule=True, restarts=restarts)
    assert len(attack.stages(images.shape[1:])) > 1
    eps = np.linspace(1, 12, len(images)).round() / 64

    def run(**options):
        return attacks.run(attack, classifier, images, labels, key=KEY, eps=eps, **options)

    found = [run(), run(batch_size=8), run(batch_size=3, devices=jax.devices()[:1])]
    monkeypatch.setattr(square, "SMALL", 10**9)
    assert len(attack.stages(images.shape[1:])) == 1
    wanted = run()
    assert 0.3 < wanted.success.mean() < 0.9
    assert np.ptp(wanted.forwards[wanted.success]) > 50  # some only among the small windows
    for result in found:
        np.testing.assert_equal(result._asdict(), wanted._asdict())


def test_in_a_run_windows_lie_at_the_same_places_in_all_images(integer_network):
    classifier, images, labels = integer_network
    attack = attacks.Square(p_init=0.01)  # single pixels
    programs_ = programs.compiled(attack, Mesh(jax.devices()[:1], ("data",)))
    places = []
    for attempt in (0, 1):
        examples = images, labels, np.arange(21), np.full(21, attempt), np.full(21, 1 / 64, "f4")
        state, _ = jax.jit(programs_.start)(classifier, examples, KEY)
        proposal = jax.vmap(attack.propose)(
            jax.vmap(jax.random.fold_in, (0, None))(state.key, 1), state
        )
        changed = np.any(np.asarray(proposal.x != state.best.x), axis=3)
        assert np.array_equal(changed, np.broadcast_to(changed[:1], changed.shape))
        places.append(changed[0])
    assert not np.array_equal(*places)
