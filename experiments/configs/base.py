"""The keys that every experiment's config has, with their defaults.

    --config=experiments/configs/<name>.py --config.method.sparsity=0.95 --config.seed=1

Every attribute of the method is a key of `config.method`. An allocation is a name or a table of
densities by path pattern, of which the first that matches counts: pairs, in a file or as a flag,

    config.method.allocation = (("Dense_0/*", 0.1), ("*", 0.5))
    --config.method.allocation='(("Dense_0/*", 0.1), ("*", 0.5))'
"""

import dataclasses
import typing
from typing import Any

from ml_collections import config_dict

from prunejax import methods


def base(dataset: str, model: str, method: str, **method_options) -> config_dict.ConfigDict:
    """A config for one method on one data set; the parts are changed by attribute."""
    config = config_dict.ConfigDict()
    config.seed = 0
    # A folder of another run whose network is the start; empty for a fresh network. What its mask
    # has removed stays so in one_shot and iterative; the others begin with all weights.
    config.init_from = ""

    config.dataset = config_dict.ConfigDict()
    config.dataset.name = dataset
    # Where TFDS has prepared it; empty for TFDS's own default.
    config.dataset.data_dir = ""
    # Images of a TFDS set are scaled and cropped to squares of that many pixels; None: as they are.
    config.dataset.image_size = config_dict.placeholder(int)
    config.dataset.shift = 0
    config.dataset.flip = False

    config.model = config_dict.ConfigDict()
    config.model.name = model
    config.model.mean = 0.0
    config.model.std = 1.0
    config.model.options = config_dict.ConfigDict()

    fields = dataclasses.fields(methods.METHODS[method])
    types = typing.get_type_hints(methods.METHODS[method])
    defaults = {field.name: field.default for field in fields}
    config.method = config_dict.ConfigDict({"name": method})
    for name, value in (defaults | method_options).items():
        config.method[name] = _placeholder(types[name]) if value is None else value
    if "allocation" in config.method:
        config.method.allocation = _name_or_table(config.method.allocation)

    config.batch_size = 128
    config.checkpoint_every = 1
    # Validation after each epoch: the network with the highest value of `select` is kept.
    config.validation = config_dict.ConfigDict()
    config.validation.select = "validation_robust_accuracy"
    config.validation.norm = "linf"
    config.validation.eps = 0.1
    config.validation.steps = 10
    config.validation.examples = 500

    # What each layer alone is pruned to where `method.allocation` is "sensitivity", and each group of
    # channels where `shrinking.allocation` is.
    config.sensitivity = config_dict.ConfigDict({"densities": (0.02, 0.05, 0.1, 0.2, 0.4, 0.7)})

    # The attacked examples are the first of the test split, the same for every network.
    config.evaluation = config_dict.ConfigDict()
    config.evaluation.examples = 1000
    config.evaluation.batch_size = 256
    config.evaluation.protocols = config_dict.ConfigDict()
    return config


def _placeholder(optional: type) -> config_dict.FieldReference:
    """None for now; a flag gives it a value of the other type of `... | None`."""
    (kind,) = (kind for kind in typing.get_args(optional) if kind is not type(None))
    return config_dict.placeholder(typing.get_origin(kind) or kind)


def _name_or_table(allocation: Any) -> config_dict.FieldReference:
    """Takes a string or a tuple, also from a flag, which reads it as Python does."""
    return config_dict.FieldReference(allocation, field_type=object)


def protocol(
    attack: str, budgets: tuple[float, ...], stated: float, **options
) -> config_dict.ConfigDict:
    """One attack of the evaluation: budgets to look at, the one that tables quote, options."""
    return config_dict.ConfigDict(
        {"attack": attack, "budgets": budgets, "stated": stated, "options": options}
    )


def shrinking(**changed) -> config_dict.ConfigDict:
    """Rounds of pruning, shrinking and fine-tuning (`experiments.shrink`)."""
    config = config_dict.ConfigDict()
    # What a round removes: "channels" or residual "blocks"; a share of the former, so many of the
    # latter; by which criterion, and how channels are compared. "masked": a single round, in which
    # all channels go that the mask of `init_from` removes wholly, whatever the other keys say of
    # which and how many.
    config.remove = "channels"
    config.share = 0.1
    config.blocks = 1
    # Whether to score the other blocks anew after each, instead of all once a round.
    config.rescore = False
    # What is left of each layer's channels is rounded up to a multiple of this, or left whole.
    config.multiple = 1
    config.criterion = "magnitude"
    config.aggregate = config_dict.placeholder(str)
    config.allocation = _name_or_table("global")
    # Training examples that criteria may look at.
    config.examples = 256
    config.include = ("*",)
    config.exclude = ()
    # Rounds end at this share of the first network's "flops" an image, "parameters" or "latency"
    # in seconds a batch; or, unless it is None, at this budget of them.
    config.target = "flops"
    config.at_most = 0.5
    config.budget = config_dict.placeholder(float)
    # Images at a time where latency is measured.
    config.batch_size = 128
    config.update(changed)
    return config
