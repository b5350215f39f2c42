"""What a round of experiments.shrink takes away."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import removal
from experiments.configs.base import shrinking as settings_of
from prunejax import masks, shrinking
from prunejax.classifier import Classifier
from prunejax.pruning import Evidence

IMAGES = np.random.default_rng(0).uniform(0.1, 1, (3, 2, 2, 1)).astype(np.float32)


def chain(variables, x):
    """Blocks that each add a share of what comes in; the second logit is the mean of the last."""
    params = variables["params"]
    x = x @ params["stem"]
    for name in ("block_0", "block_1", "block_2"):
        x = x + x @ params[name]
    return jnp.stack([jnp.zeros(len(x)), x.mean(axis=(1, 2, 3))], axis=1)


@pytest.mark.parametrize(
    ("rescore", "left"), [(False, "block_2"), (True, "block_0")], ids=["at once", "anew"]
)
def test_blocks_are_scored_all_at_once_or_anew_after_each(rescore, left):
    # They add, in units of the mean, 0.5, 0.2 * 1.5 and 0.3 * 1.5 * 1.2; without the second one
    # 0.5 and 0.3 * 1.5.
    params = {
        name: np.full((1, 1), factor, np.float32)
        for name, factor in {"stem": 1.0, "block_0": 0.5, "block_1": 0.2, "block_2": 0.3}.items()
    }
    classifier = Classifier({"params": params}, chain)
    stage = removal.Stage(
        Classifier(classifier.variables, shrinking.whole(chain, classifier.variables)),
        masks.dense(params),
    )

    def evidence_of(classifier):
        """With a loss, as that of a run has."""
        return Evidence(
            batches=((jnp.asarray(IMAGES), jnp.zeros(3, int)),), loss=lambda params, batch: 0.0
        )

    settings = settings_of(remove="blocks", blocks=2, rescore=rescore, criterion="expected_abs")
    views = removal.Views(evidence_of, accuracy_of=None)
    smaller = removal.remove(stage, settings, IMAGES.shape[1:], views)

    assert smaller.params.keys() == smaller.mask.keys() == {"stem", left}
    factor = 1 + params[left].item()
    logits = smaller.classifier(IMAGES)
    np.testing.assert_allclose(logits[:, 1], factor * IMAGES.mean(axis=(1, 2, 3)), rtol=1e-5)
