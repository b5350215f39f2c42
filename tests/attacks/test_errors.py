"""Every wrong argument is named, with its value, before anything of the attack is traced."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from prunejax import attacks
from prunejax.classifier import Classifier
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


def test_no_images():
    refused("images", "(0, 3, 2, 1)", images=IMAGES[:0], labels=LABELS[:0])


@pytest.mark.parametrize("images", [IMAGES[0, 0, 0], np.float32(0.5)])
def test_images_without_a_batch_axis(images):
    refused("images", str(images.shape), images=images)


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


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        *((name, option, 0) for name in attacks.ATTACKS for option in ("steps", "restarts")),
        ("fgsm", "steps", 2),
        ("pgd", "relative_step", 0.0),
        ("pgd", "relative_step", -0.5),
        ("deepfool", "candidates", 0),
        ("sigma_zero", "learning_rate", 0.0),
        ("sigma_zero", "sigma", -1.0),
        ("sigma_zero", "tau_step", 0.0),
    ],
)
def test_hyperparameters_out_of_range(name, option, value):
    with pytest.raises(ValueError, match=f"{option} is {value}"):
        attacks.create(name, **{option: value})


@pytest.mark.parametrize("name", ["fgsm", "pgd"])
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


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [("pgd", "steps", 2.5), ("deepfool", "overshoot", -2), ("sigma_zero", "tau", -1)],
)
def test_other_hyperparameters(name, option, value):
    with pytest.raises(ValueError, match=f"{option} is {value}"):
        attacks.create(name, **{option: value})
