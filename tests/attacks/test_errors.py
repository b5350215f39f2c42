"""Every wrong argument is named, with its value, before anything of the attack is traced."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from prunejax import attacks, models
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
    """Asserts that `run` refuses these arguments with all of `in_message`."""
    arguments = {"images": IMAGES, "labels": LABELS, "eps": 0.1, **wrong}
    images, labels = arguments.pop("images"), arguments.pop("labels")
    with pytest.raises(ValueError, match="(?s)" + ".*".join(map(re.escape, in_message))):
        attacks.run(
            attack or UntracedPGD(),
            classifier,
            images,
            labels,
            key=jax.random.key(0),
            **arguments,
        )


def test_the_untraced_attack_would_notice():
    with pytest.raises(pytest.fail.Exception):
        attacks.run(UntracedPGD(), CLASSIFIER, IMAGES, LABELS, key=jax.random.key(0), eps=0.1)


@pytest.mark.parametrize(("labels", "value"), [([0, 1, 2, 3], "3"), ([0, -1, 2, 0], "-1")])
def test_labels_out_of_range(labels, value):
    refused("labels", value, "[0, 2]", "3 classes", labels=np.array(labels))


@pytest.mark.parametrize("labels", [np.array([0.0, 1.0, 2.0, 0.0]), np.array([True] * 4)])
def test_labels_that_are_no_integers(labels):
    refused("labels", str(labels.dtype), labels=labels)


@pytest.mark.parametrize("labels", [LABELS[:3], LABELS[:, None], np.array(0)])
def test_labels_that_are_not_one_an_image(labels):
    refused("labels", str(labels.shape), "(4, 3, 2, 1)", labels=labels)


def test_a_targeted_attack_without_targets():
    refused("labels", "()", "one label an image", attack=UntracedPGD(targeted=True), labels=None)


def test_no_images():
    refused("images", "(0, 3, 2, 1)", images=IMAGES[:0], labels=LABELS[:0])


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
    refused("eps", "None", "PGD", "linf", eps=None)


@pytest.mark.parametrize("eps", [-0.1, np.array([0.1, -0.2, 0.1, 0.1]), np.nan])
def test_a_budget_that_is_none(eps):
    refused("eps", str(np.float32(np.min(eps))), eps=eps)


def test_budgets_that_are_not_one_an_example():
    refused("eps", "0.125 0.125 0.125", "one for each", eps=np.full(3, 0.125))


def test_a_budget_for_a_minimum_norm_attack():
    refused("eps", "0.125", "minimum", attack=UntracedDeepFool(), eps=0.125)


def test_a_classifier_without_logits():
    def images_back(variables, images):
        return images

    refused("classifier", "(2, 3, 2, 1)", classifier=Classifier(None, images_back))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_network_that_has_diverged(value):
    weights = np.zeros((6, 3), np.float32)
    weights[2, 1] = value
    refused("classifier", "NaN or infinite", "restore", classifier=Classifier(weights, logits))


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
        ("relative_step", 0.0, "positive"),
        ("relative_step", -0.5, "positive"),
        ("momentum", -0.5, "at least 0"),
    ],
    "apgd": [
        ("alpha", 0.0, "(0, 1]"),
        ("alpha", 1.5, "(0, 1]"),
        ("rho", -0.1, "[0, 1]"),
        ("rho", 1.1, "[0, 1]"),
        ("share", 1.0, "(0, 1)"),
        ("larger_budgets", True, "'l1'"),
    ],
    "deepfool": [("candidates", 0, "at least 1"), ("overshoot", -2, "at least 0")],
    "fab": [
        ("candidates", 0, "at least 1"),
        ("alpha_max", 1.1, "[0, 1]"),
        ("eta", 0.9, "at least 1"),
        ("beta", 0.0, "(0, 1]"),
    ],
    "fmn": [
        ("alpha", 0.0, "positive"),
        ("gamma", 1.0, "(0, 1)"),
        ("gamma_final", 0.1, "(0, gamma = 0.05]"),
    ],
    "ddn": [
        ("gamma", 0.0, "(0, 1)"),
        ("init_eps", -1.0, "positive"),
        ("levels", 1, "at least 2"),
    ],
    "carlini_wagner": [
        ("rounds", 9001, "from 1 to steps = 9000"),
        ("learning_rate", 0.0, "positive"),
        ("initial_c", -1.0, "positive"),
        ("confidence", -0.5, "at least 0"),
    ],
    "pdpgd": [
        ("learning_rate", 0.0, "positive"),
        ("learning_rate_decay", 2.0, "(0, 1]"),
        ("dual_rate", -1.0, "positive"),
        ("dual_mean", 1.0, "[0, 1)"),
        ("initial_ratio", 0.0, "(1e-6, 1e6)"),
    ],
    "jsma": [
        ("theta", 0.0, "[-1, 1]"),
        ("theta", 1.5, "[-1, 1]"),
        ("restarts", 2, "deterministic"),
    ],
    "one_pixel": [
        ("population", 3, "integer of at least 4"),
        ("pixels", 0, "integer of at least 1"),
        ("slice_size", 2.5, "integer of at least 1"),
        ("differential_weight", 0.0, "(0, 2]"),
    ],
    "sigma_zero": [
        ("learning_rate", 0.0, "positive"),
        ("sigma", -1.0, "positive"),
        ("tau_step", 0.0, "positive"),
        ("tau", -1, "[0, 1]"),
    ],
    "square": [("p_init", 0.0, "(0, 1]"), ("p_init", 1.5, "(0, 1]")],
    "sparse_rs": [("alpha_init", 0.0, "(0, 1]"), ("alpha_init", 1.5, "(0, 1]")],
    "brendel_bethge": [
        ("overshoot", 0.9, "[1, 2)"),
        ("lr", 0.0, "positive"),
        ("lr_decay", 1.5, "(0, 1]"),
        ("momentum", 1.0, "[0, 1)"),
        ("tries", 0, "integer of at least 1"),
        ("halvings", 2.5, "integer of at least 1"),
    ],
    "hopskipjump": [
        ("queries", 0, "integer of at least 1"),
        ("halvings", 1.5, "integer of at least 1"),
        ("tries", 0, "integer of at least 1"),
    ],
}


@pytest.mark.parametrize("name", attacks.ATTACKS)
def test_hyperparameters_out_of_range(name):
    everyone = [(option, 0, "integer of at least 1") for option in ("steps", "restarts")]
    for option, value, advice in everyone + OUT_OF_RANGE[name]:
        message = re.escape(f"{option} is {value}") + ".*; .*" + re.escape(advice)
        with pytest.raises(ValueError, match=message):
            attacks.create(name, **{option: value})


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
        ("batch_size", 0, ("batch_size is 0",)),
        ("devices", [], ("devices is empty",)),
        ("eps", "a", ("eps is a",)),
        ("eps", np.inf, ("eps is inf", "finite")),
        ("eps", np.nan, ("eps is nan",)),
    ],
)
def test_other_arguments_of_run(argument, value, in_message):
    refused(*in_message, **{argument: value})
