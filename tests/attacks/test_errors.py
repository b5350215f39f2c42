"""Every wrong argument is named, with its value, before anything of the attack is traced."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prunejax import attacks, models
from prunejax.attacks import runner
from prunejax.classifier import Classifier, Network
from prunejax.norms import NORMS

IMAGES = np.full((4, 3, 2, 1), 0.5, np.float32)
LABELS = np.array([0, 1, 2, 0])


def logits(variables, images):
    return images.reshape(len(images), -1) @ variables


CLASSIFIER = Classifier(np.zeros((6, 3), np.float32), logits)


@dataclasses.dataclass(frozen=True, kw_only=True)
class UntracedPGD(attacks.PGD):
    def init(self, *args):
        pytest.fail("the attack was traced before its arguments were looked at")


@dataclasses.dataclass(frozen=True, kw_only=True)
class UntracedDeepFool(attacks.DeepFool):
    def init(self, *args):
        pytest.fail("the attack was traced before its arguments were looked at")


@pytest.fixture(scope="module")
def strided_cnn():
    network = Network(models.create("strided_cnn", num_classes=10))
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), (28, 28, 1)))
    return Classifier(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes), network)


def has_loss(attack) -> bool:
    return "loss" in (field.name for field in dataclasses.fields(attack))


def refused(*in_message, attack=None, classifier=CLASSIFIER, **wrong):
    """Asserts that all that runs attacks refuses these arguments with all of `in_message`."""
    attack = attack or UntracedPGD()
    arguments = {"images": IMAGES, "labels": LABELS, "key": jax.random.key(0), **wrong}
    some = classifier, arguments.pop("images"), arguments.pop("labels")
    eps = arguments.pop("eps", 0.1)
    ways = [lambda: attacks.run(attack, *some, eps=eps, **arguments)]
    if not attack.minimum_norm:
        cascade = attacks.Cascade(norm=attack.norm, members=(("only", attack),))
        ways += [
            lambda: attacks.run(cascade, *some, eps=eps, **arguments),
            lambda: attacks.smallest_budget(attack, *some, upper=eps, **arguments),
        ]
    if "eps" not in wrong:
        ways += [lambda: attacks.robust_accuracies(attack, *some, [0.0, 0.1], **arguments)]
    for way in ways:
        with pytest.raises(ValueError, match="(?s)" + ".*".join(map(re.escape, in_message))):
            way()


def test_the_untraced_attack_would_notice():
    with pytest.raises(pytest.fail.Exception):
        attacks.run(UntracedPGD(), CLASSIFIER, IMAGES, LABELS, key=jax.random.key(0), eps=0.1)


@pytest.mark.parametrize(("labels", "value"), [([0, 1, 2, 3], "3"), ([0, -1, 2, 0], "-1")])
def test_labels_out_of_range(labels, value):
    refused("labels", value, "[0, 2]", "3 classes", labels=np.array(labels))


@pytest.mark.parametrize("labels", [[0.0, 1.0, 2.0, 0.0], [True] * 4, ["cat"] * 4, [None] * 4])
def test_labels_that_are_no_integers(labels):
    refused("labels has dtype", str(np.array(labels).dtype), "integers", labels=np.array(labels))


@pytest.mark.parametrize(
    "labels", [LABELS[:3], np.tile(LABELS, 2), LABELS[:, None], np.array(0), None]
)
def test_labels_that_are_not_one_an_image(labels):
    refused("labels", str(np.shape(labels)), "(4, 3, 2, 1)", labels=labels)


def test_a_targeted_attack_without_targets():
    refused("labels", "()", "one label an image", attack=UntracedPGD(targeted=True), labels=None)


def test_no_images():
    refused("images", "(0, 3, 2, 1)", images=IMAGES[:0], labels=LABELS[:0])


def test_images_without_entries():
    refused("images", "(4, 0)", "at least one entry", images=np.zeros((4, 0), np.float32))


@pytest.mark.parametrize("images", [IMAGES[0, 0, 0], np.float32(0.5)])
def test_images_without_a_batch_axis(images):
    refused("images", str(images.shape), images=images)


@pytest.mark.parametrize(
    "shape", [(5, 28, 28), (5, 784), (5, 28, 28, 3), (5, 32, 32, 1), (28, 28, 1)]
)
def test_images_of_another_shape_than_the_network_takes(shape, strided_cnn):
    images, labels = np.full(shape, 0.5, np.float32), np.zeros(shape[0], np.int32)
    without_batch = "images has the shape " + str(shape[1:])
    refused(without_batch, "trained on", classifier=strided_cnn, images=images, labels=labels)


def test_bytes():
    refused("images", "uint8", "255", images=np.full(IMAGES.shape, 128, np.uint8))


@pytest.mark.parametrize("value", [-0.25, 1.5, np.nan, np.inf])
def test_images_outside_the_box(value):
    images = IMAGES.copy()
    images[2, 1, 0, 0] = value
    refused("images", str(value), "[0, 1]", images=images)


def test_no_budget():
    refused("eps is None", "needs a budget in linf", eps=None)
    with pytest.raises(ValueError, match="PGD needs"):
        attacks.run(UntracedPGD(), CLASSIFIER, IMAGES, LABELS, key=jax.random.key(0))


@pytest.mark.parametrize("eps", [-0.1, np.array([0.1, -0.2, 0.1, 0.1]), np.nan])
def test_a_budget_that_is_none(eps):
    refused("eps", str(np.float32(np.min(eps))), eps=eps)


def test_budgets_that_are_not_one_an_example():
    refused("eps", "0.125 0.125 0.125", "one for each", eps=np.full(3, 0.125))


@pytest.mark.parametrize(("norm", "unit"), [("l0", "features"), ("l0_pixels", "pixels")])
def test_a_budget_that_is_no_count(norm, unit):
    for eps, value in ((0.0314, "0.0314"), (np.array([0, 1, 3, 0.25]), "0.25")):
        wanted = value, repr(norm), f"a number of {unit}"
        refused("eps", *wanted, attack=UntracedPGD(norm=norm), eps=eps)
    some = UntracedPGD(norm=norm), CLASSIFIER, IMAGES, LABELS
    with pytest.raises(ValueError, match=r"budgets is \[0\.25 2\.  \]; in"):
        attacks.robust_accuracies(*some, [0.25, 2], key=jax.random.key(0))


def test_a_budget_for_a_minimum_norm_attack():
    refused("eps", "0.125", "minimum", attack=UntracedDeepFool(), eps=0.125)


def test_a_classifier_without_logits():
    def images_back(variables, images):
        return images

    refused("classifier", "(2, 3, 2, 1)", classifier=Classifier(None, images_back))


def test_a_classifier_of_decisions():
    decided = Classifier(
        CLASSIFIER.variables,
        lambda v, images: jax.nn.one_hot(logits(v, images).argmax(1), 3, dtype=int),
    )
    refused("classifier returns", "int32", "before any argmax", classifier=decided)


def test_a_classifier_that_drops_the_batch_axis_of_one_image():
    squeezing = Classifier(CLASSIFIER.variables, lambda v, images: jnp.squeeze(logits(v, images)))
    refused("classifier returns", "(3,)", "(1, 3, 2, 1)", "[1, C]", classifier=squeezing)


def test_a_classifier_of_one_class():
    sigmoid = Classifier(np.zeros((6, 1), np.float32), logits)
    refused("classifier", "(2, 1)", "at least 2 classes", classifier=sigmoid, labels=0 * LABELS)


@pytest.mark.parametrize("function", [lambda images: images, "pgd"])
def test_a_classifier_that_is_none(function):
    refused("classifier is", repr(function), "Classifier(", classifier=function)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_network_that_has_diverged(value, dtype):
    weights = jnp.zeros((6, 3), dtype).at[2, 1].set(value)
    refused("classifier", "NaN or infinite", "restore", classifier=Classifier(weights, logits))


def test_a_number_of_a_network_that_has_diverged():
    scaled = Classifier({"scale": np.nan}, lambda variables, images: images * variables["scale"])
    refused("classifier", "'scale'", "NaN or infinite", classifier=scaled)


def test_a_network_may_hold_numbers_and_keys_and_images_may_be_short_floats():
    """All of them are used: logits [0, scale (x - 0.5) k], k = 1 the last word of the key."""

    def network(variables, images):
        word = jax.random.key_data(variables["key"])[1]
        score = variables["scale"] * (images[:, 0] - 0.5) * word
        return jnp.stack([jnp.zeros_like(score), score], axis=1)

    images = jnp.array([[0.4375], [0.25]], jnp.bfloat16)  # exact
    variables = {"scale": 2.0, "key": jax.random.key(1), "name": None}
    result = attacks.run(
        attacks.FGSM(), Classifier(variables, network), images, np.zeros(2, int),
        key=jax.random.PRNGKey(0), eps=jnp.bfloat16(0.125),
    )  # fmt: skip
    assert np.array_equal(result.images, np.array([[0.5625], [0.25]], np.float32))


@pytest.mark.parametrize("attack", ["pgd", attacks.PGD, attacks.Cascade, None])
def test_an_attack_that_is_none(attack):
    some = CLASSIFIER, IMAGES, LABELS
    key = {"key": jax.random.key(0)}
    for way in (
        lambda: attacks.run(attack, *some, eps=0.1, **key),
        lambda: attacks.robust_accuracies(attack, *some, [0.1], **key),
        lambda: attacks.smallest_budget(attack, *some, upper=0.1, **key),
        lambda: attacks.Cascade(norm="linf", members=(("pgd", attack),)),
    ):
        with pytest.raises(ValueError, match=re.escape(repr(attack)) + r".*attacks\.create\(name"):
            way()


def test_images_that_the_attack_cannot_take(monkeypatch):
    monkeypatch.setattr(runner, "inspect", lambda *_, **__: pytest.fail("compiled first"))
    images = np.full((4, 3, 2, 1, 1), 0.5, np.float32)
    with pytest.raises(ValueError, match=r"images has shape \[N, 3, 2, 1, 1\]; Square needs"):
        attacks.run(attacks.Square(), CLASSIFIER, images, LABELS, key=jax.random.key(0), eps=0.1)


def test_an_unknown_attack():
    with pytest.raises(ValueError, match=r"'sigmazero'.*'sigma_zero'.*apgd, .*deepfool, .*square"):
        attacks.create("sigmazero")


def test_an_unknown_option():
    with pytest.raises(ValueError, match=r"'pgd'.*'step'.*'steps'.*random_start"):
        attacks.create("pgd", step=3)


def test_options_reach_the_attack():
    attack = attacks.create("pgd", norm="l1", steps=7, restarts=2, targeted=True)
    assert attack == attacks.PGD(norm="l1", steps=7, restarts=2, targeted=True)


@pytest.mark.parametrize("name", attacks.ATTACKS)
def test_an_unknown_norm(name):
    with pytest.raises(ValueError, match=r"norm 'l7'.*l0, l0_pixels, l1, l2, linf"):
        attacks.create(name, norm="l7")


@pytest.mark.parametrize("name", attacks.ATTACKS)
def test_an_attack_takes_the_norms_that_it_says_and_no_others(name):
    supported = attacks.ATTACKS[name].supported
    assert attacks.create(name).norm in supported
    for norm in NORMS:
        if norm in supported:
            assert attacks.create(name, norm=norm).norm == norm
        else:
            with pytest.raises(ValueError, match=f"norm is '{norm}'.*'{supported[0]}'"):
                attacks.create(name, norm=norm)


# Values that an option may not have, and what the message says of those that it may.
OUT_OF_RANGE = {
    "fgsm": [("steps", 2, "1 step")],
    "pgd": [
        ("steps", 2.5, "integer"),
        ("targets", -1, "integer of at least 0"),
        ("random_start", "no", "True or False"),
        ("targeted", "yes", "True or False"),
        ("relative_step", 0.0, "(0, inf)"),
        ("relative_step", -0.5, "(0, inf)"),
        ("momentum", -0.5, "[0, inf)"),
    ],
    "apgd": [
        ("alpha", 0.0, "(0, 1]"),
        ("alpha", 1.5, "(0, 1]"),
        ("rho", -0.1, "[0, 1]"),
        ("rho", 1.1, "[0, 1]"),
        ("norm", "l1", "'apgd_l1'"),
        ("norm", "l0", "'linf' or 'l2'"),
    ],
    "apgd_l1": [("share", 1.0, "(0, 1)"), ("larger_budgets", "no", "True or False")],
    "deepfool": [("candidates", 0, "at least 1"), ("overshoot", -2, "[0, inf)")],
    "fab": [
        ("candidates", 0, "at least 1"),
        ("alpha_max", 1.1, "[0, 1]"),
        ("eta", 0.9, "[1, inf)"),
        ("beta", 0.0, "(0, 1]"),
    ],
    "fmn": [
        ("alpha", 0.0, "(0, inf)"),
        ("gamma", 1.0, "(0, 1)"),
        ("gamma_final", 0.1, "(0, gamma = 0.05]"),
        ("gamma_final", "x", "(0, 1)"),
    ],
    "ddn": [
        ("gamma", 0.0, "(0, 1)"),
        ("init_eps", -1.0, "(0, inf)"),
        ("levels", 1, "at least 2"),
    ],
    "carlini_wagner": [
        ("rounds", 9001, "at most steps = 9000"),
        ("learning_rate", 0.0, "(0, inf)"),
        ("initial_c", -1.0, "(0, inf)"),
        ("confidence", -0.5, "[0, inf)"),
    ],
    "pdpgd": [
        ("learning_rate", 0.0, "(0, inf)"),
        ("learning_rate_decay", 2.0, "(0, 1]"),
        ("dual_rate", -1.0, "(0, inf)"),
        ("dual_mean", 1.0, "[0, 1)"),
        ("initial_ratio", 0.0, "(1e-6, 1e6)"),
    ],
    "jsma": [
        ("theta", 0.0, "must move"),
        ("theta", 1.5, "[-1, 1]"),
        ("theta", "a", "[-1, 1]"),
    ],
    "one_pixel": [
        ("population", 3, "integer of at least 4"),
        ("pixels", 0, "integer of at least 1"),
        ("slice_size", 2.5, "integer of at least 1"),
        ("differential_weight", 0.0, "(0, 2]"),
    ],
    "sigma_zero": [
        ("learning_rate", 0.0, "(0, inf)"),
        ("sigma", -1.0, "(0, inf)"),
        ("tau_step", 0.0, "(0, inf)"),
        ("tau", -1, "[0, 1]"),
    ],
    "square": [("p_init", 0.0, "(0, 1]"), ("p_init", 1.5, "(0, 1]"), ("p_init", "a", "(0, 1]")],
    "sparse_rs": [("alpha_init", 0.0, "(0, 1]"), ("alpha_init", 1.5, "(0, 1]")],
    "brendel_bethge": [
        ("overshoot", 0.9, "[1, 2)"),
        ("lr", 0.0, "(0, inf)"),
        ("lr_decay", 1.5, "(0, 1]"),
        ("momentum", 1.0, "[0, 1)"),
        ("tries", 0, "integer of at least 1"),
        ("halvings", 2.5, "integer of at least 1"),
    ],
    "hopskipjump": [
        ("queries", 0, "integer of at least 1"),
        ("halvings", 1.5, "integer of at least 1"),
        ("tries", 0, "integer of at least 1"),
        ("targets", 2, "restarts, or targeted=True"),
    ],
}


@pytest.mark.parametrize("name", attacks.ATTACKS)
def test_hyperparameters_out_of_range(name):
    everyone = [(option, 0, "integer of at least 1") for option in ("steps", "restarts")]
    for option, value, advice in everyone + OUT_OF_RANGE[name]:
        message = re.escape(f"{option} is {value!r}") + ".*; .*" + re.escape(advice)
        with pytest.raises(ValueError, match=message):
            attacks.create(name, **{option: value})


FLOATS = [
    (name, field.name)
    for name, attack in attacks.ATTACKS.items()
    for field in dataclasses.fields(attack)
    if field.type in (float, float | None)
]


@pytest.mark.parametrize(("name", "option"), FLOATS)
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_hyperparameters_that_are_not_finite(name, option, value):
    with pytest.raises(ValueError, match=f"^{option} is {value}; it must lie in "):
        attacks.create(name, **{option: value})


def test_a_hyperparameter_that_is_no_number():
    for value in ("0.5", True):
        with pytest.raises(ValueError, match=f"momentum is {value!r}; it must lie in "):
            attacks.PGD(momentum=value)


DETERMINISTIC = [
    "fgsm", "deepfool", "fab", "fmn", "ddn", "carlini_wagner", "pdpgd", "jsma", "sigma_zero",
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "options"), [*((name, {}) for name in DETERMINISTIC), ("pgd", {"random_start": False})]
)
def test_restarts_of_a_deterministic_attack(name, options):
    with pytest.raises(ValueError, match=r"restarts is 2; .* draws nothing at random"):
        attacks.create(name, restarts=2, **options)


@pytest.mark.parametrize(("name", "options"), [("fgsm", {}), ("pgd", {"random_start": False})])
def test_a_loss_without_a_gradient_at_the_start(name, options):
    advice = "another loss, or PGD with random_start=True"
    with pytest.raises(ValueError, match=f"loss is 'kl'.*gradient is 0.*{advice}"):
        attacks.create(name, loss="kl", **options)


@pytest.mark.parametrize("name", ["fgsm", "pgd", "apgd", "apgd_l1", "ddn", "square", "sparse_rs"])
@pytest.mark.parametrize("option", [{"targeted": True}, {"targets": 1}])
def test_a_loss_that_knows_no_target(name, option):
    with pytest.raises(ValueError, match="loss is 'kl'"):
        attacks.create(name, loss="kl", **option)


def test_an_unknown_strategy():
    with pytest.raises(ValueError, match=r"strategy 'best'.*'best1'.*best1, both, rand1"):
        attacks.create("one_pixel", strategy="best")


@pytest.mark.parametrize("name", [n for n, attack in attacks.ATTACKS.items() if has_loss(attack)])
def test_an_unknown_loss(name):
    with pytest.raises(
        ValueError, match=r"loss 'margni'.*'margin'.*cross_entropy, dlr, kl, margin"
    ):
        attacks.create(name, loss="margni")


@pytest.mark.parametrize(
    ("argument", "value", "in_message"),
    [
        ("indices", np.arange(3), ("indices", "(3,)", "(4,)")),
        ("indices", np.array(["a"] * 4), ("indices", "U1", "integers")),
        ("indices", np.arange(3)[:, None], ("indices", "(3, 1)", "(4,)")),
        ("batch_size", 0, ("batch_size is 0",)),
        ("batch_size", 2.5, ("batch_size is 2.5", "integer")),
        ("key", None, ("key is None", "jax.random.key")),
        ("key", 0, ("key is 0", "jax.random.key")),
        ("key", jax.random.split(jax.random.key(0), 4), ("key is", "single key")),
        ("devices", [], ("devices is []", "at least 1")),
        ("devices", "cpu", ("devices is 'cpu'", "jax.devices()")),
        ("devices", jax.devices()[:1] * 2, ("devices is", "each once")),
        ("eps", "a", ("eps is a",)),
        ("eps", np.inf, ("eps is inf", "finite")),
        ("eps", 1e39, ("eps is 1e+39", "finite, as a float32")),
        ("eps", np.nan, ("eps is nan",)),
        ("eps", 0.1 + 0j, ("eps is (0.1+0j)", "number >= 0")),
    ],
)
def test_other_arguments_of_run(argument, value, in_message):
    refused(*in_message, **{argument: value})
