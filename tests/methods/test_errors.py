"""Methods: errors before anything is compiled."""

import dataclasses

import pytest

from prunejax import methods
from tests.methods.toy import STEPS, run

GRADUAL = ["gradual_natural", "gradual_adversarial", "blind"]
PRUNING = [name for name in methods.METHODS if name != "dense"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("one_shott", {}, r"Unknown method 'one_shott'. Did you mean 'one_shot'\?"),
        ("blind", {"sparsty": 0.9}, r"method 'blind' 'sparsty'. Did you mean 'sparsity'\?"),
        ("dense", {"sparsity": 0.9}, "option of method 'dense' 'sparsity'"),
        ("dense", {"optimizer": "adm"}, r"Unknown optimizer 'adm'. Did you mean 'adam'\?"),
        ("dense", {"schedule": "cosin"}, r"Unknown schedule 'cosin'. Did you mean 'cosine'\?"),
        ("dense", {"norm": "linff"}, r"Unknown norm 'linff'. Did you mean 'linf'\?"),
        ("blind", {"criterion": "magnitud"}, "Did you mean 'magnitude'"),
        ("blind", {"allocation": "glob"}, "Did you mean 'global'"),
        ("one_shot", {"granularity": "filters"}, "Did you mean 'filter'"),
    ],
)
def test_unknown_names_name_the_nearest(name, options, message):
    with pytest.raises(ValueError, match=message):
        methods.create(name, **options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        *((name, {"sparsity": s}, f"sparsity is {s}") for name in PRUNING for s in (1.0, -0.1, 90)),
        *((name, {"epochs": 0}, "epochs (is|=) 0") for name in methods.METHODS),
        *((name, {"pruning_epochs": 30}, "pruning_epochs is 30") for name in GRADUAL),
        *((name, {"pruning_epochs": -1}, "pruning_epochs is -1") for name in GRADUAL),
        *((name, {"mask_frequency": 0}, "frequency is 0") for name in GRADUAL),
        *(
            (name, {"initial_sparsity": 0.95}, r"initial is 0\.95; .* most 0\.9")
            for name in GRADUAL
        ),
        *(
            ("blind", {"pruning_schedule": name}, rf"{name}'.* Valid: constant_rate, cubic\.")
            for name in ("one_shot", "iterative", "alternating", "cubics")
        ),
        (
            "blind",
            {"initial_sparsity": 0.5, "pruning_schedule": "constant_rate"},
            r"initial_sparsity is 0\.5; only .* 'cubic' begins with one, and it is 'constant_rate'",
        ),
        ("iterative", {"rounds": 0}, "rounds is 0"),
        ("iterative", {"granularity": "2:4", "rates": [1.5, 4]}, r"sparsity is 0\.75; .* at 0\.5"),
        ("one_shot", {"rounds": 1.5}, "rounds is 1.5; an integer of at least 1"),
        ("lottery", {"rates": [4, 2]}, r"rates is \[4, 2\]"),
        *((name, {"pruning_begin": 16}, "pruning_begin is 16") for name in GRADUAL),
        ("lottery", {"rewind_epochs": -1}, "rewind_epochs is -1"),
        ("alternating", {"pruning_epochs": 30}, "pruning_epochs is 30"),
        ("alternating", {"sparse_epochs": 0}, "sparse is 0"),
        ("regrowing", {"regrowing_epochs": 31}, "regrowing_epochs is 31"),
        ("regrowing", {"drop": 1.5}, r"drop is 1\.5"),
        *(
            (name, {"criterion": "kl", "examples": 0}, "'kl', which needs more than.* examples=0")
            for name in (*GRADUAL, "alternating", "regrowing")
        ),
        *(
            (name, {"criterion": "taylor", "examples": 0}, "'taylor', which needs more.*'snip'")
            for name in ("one_shot", *GRADUAL, "alternating", "regrowing")
        ),
        *(
            (name, {"criterion": "learned"}, "'learned', which needs more than.*scores.*'hydra'")
            for name in PRUNING
            if name != "hydra"
        ),
        *(
            (name, {"criterion": "snip", "examples": 0}, "'snip', which needs more.*examples=0")
            for name in ("one_shot", "iterative", "lottery")
        ),
        ("dense", {"label_smoothing": 1.0}, r"label_smoothing is 1\.0"),
        ("dense", {"label_smoothing": -0.1}, r"label_smoothing is -0\.1"),
        ("dense", {"learning_rate": 0.0}, r"learning_rate is 0\.0"),
        ("dense", {"eps": -0.1}, r"eps is -0\.1"),
        ("dense", {"attack_steps": 0}, "steps is 0"),
        ("dense", {"relative_step": -1.0}, r"relative_step is -1\.0"),
        ("dense", {"optimizer": "adam", "weight_decay": 1e-4}, "weight_decay"),
        ("blind", {"scale": 0.0}, r"scale is 0\.0"),
        ("blind", {"cutoff": -1.0}, r"cutoff is -1\.0"),
        ("blind", {"deepfool_steps": 0}, "steps is 0"),
        ("blind", {"candidates": 0}, "candidates is 0"),
        *(
            (name, {"pruning_schedule": "one_shot"}, "pruning_schedule 'one_shot'.*cubic")
            for name in GRADUAL
        ),
    ],
)
def test_values_out_of_range_are_named_at_once(name, options, message):
    with pytest.raises(ValueError, match=message):
        methods.create(name, **options)


def test_a_negative_number_of_examples_is_named():
    with pytest.raises(ValueError, match="examples of phase 'finetune' is -1"):
        methods.create("one_shot", examples=-1).phases(STEPS)


def test_lists_become_tuples_so_that_methods_are_hashable():
    method = methods.create("one_shot", include=["Dense_*"], exclude=["Dense_1/*"])
    assert method.include == ("Dense_*",)
    assert hash(method) == hash(dataclasses.replace(method))


def test_a_pattern_that_matches_nothing_is_an_error_before_training():
    with pytest.raises(ValueError, match=r"'Conv_\*' matches none of the weights"):
        run(methods.create("gradual_natural", epochs=2, pruning_epochs=1, include=["Conv_*"]))
