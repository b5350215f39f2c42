"""HYDRA: what its scores learn, and that they change nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prunejax import Network, masks, methods, models, pruning, trees
from prunejax.data import Dataset
from prunejax.training import Start, Trained, train
from tests.methods.toy import (
    NETWORK,
    SIZES,
    STEPS,
    WEIGHTS,
    assert_pruned_exactly,
    removed,
    run_phases,
    toy,
)


def test_scores_choose_what_helps_where_magnitude_chooses_what_is_large():
    """Half of the pixels tell the class by small weights, half are noise under large ones."""
    rng = np.random.default_rng(0)
    labels = np.arange(64) % 2
    noise = rng.integers(0, 256, (64, 4, 4, 1))
    images = np.where(np.arange(4)[:, None, None] < 2, 200 * labels[:, None, None, None], noise)
    dataset = Dataset(images.astype(np.uint8), labels, ("dark", "light"), "planted", "train")
    network = Network(models.create("mlp", 2, widths=[]), mean=0.4)
    signs = rng.choice([-1.0, 1.0], (8, 2))
    kernel = np.concatenate([np.tile([-0.5, 0.5], (8, 1)), signs]).astype(np.float32)
    params = {"Dense_0": {"kernel": kernel, "bias": np.zeros(2, np.float32)}}
    start = Trained({"params": params}, masks.dense(params))
    method = methods.create(
        "hydra", sparsity=0.5, score_epochs=15, learning_rate=0.05, epochs=1, adversarial=False
    )
    helps = np.arange(16)[:, None] < np.array([[8, 8]])
    magnitude = pruning.prune(params, 0.5)["Dense_0"]["kernel"]
    np.testing.assert_array_equal(magnitude, ~helps)

    scores, _ = method.phases(steps_per_epoch=4)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    trained = train(network, start, [scores], dataset, batch_size=16, mesh=mesh)
    np.testing.assert_array_equal(trained.mask["Dense_0"]["kernel"], helps)
    # The weights themselves have not moved; the bias, which has no scores, has.
    np.testing.assert_array_equal(trained.variables["params"]["Dense_0"]["kernel"], kernel * helps)
    assert np.any(trained.variables["params"]["Dense_0"]["bias"])


def test_the_first_step_is_that_of_the_paper():
    """ds = sign(s) w dL/d(w m(s)) for all weights, kept or not, and the bias's own gradient."""
    scores, _ = methods.create("hydra", sparsity=0.75, adversarial=False).phases(STEPS)
    dataset, start = toy()
    params = start.variables["params"]
    images, labels = jnp.asarray(dataset.images, jnp.float32) / 255, jnp.asarray(dataset.labels)
    trainable, weights, mask = scores.begin(Start(params, start.mask, None, pruning.Evidence()))
    # At first what is kept is what magnitude keeps of each layer.
    jax.tree.map(np.testing.assert_array_equal, mask, pruning.prune(params, 0.75))

    def loss(params):
        logits = NETWORK({"params": params}, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    of_trainable = jax.grad(lambda t: loss(scores.materialize(t, weights)))(trainable)
    of_effective = trees.flatten(jax.grad(loss)(masks.apply(params, mask)))
    leaves = trees.flatten(params)
    for path, found in trees.flatten(of_trainable).items():
        expected = of_effective[path]
        if path in WEIGHTS:  # sign(s) is that of w
            expected = expected * jnp.abs(leaves[path])
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-8)
        assert np.any(np.asarray(found) != 0), path


def test_scores_then_weights_at_the_exact_density():
    method = methods.create(
        "hydra",
        sparsity=0.75,
        score_epochs=2,
        epochs=2,
        score_learning_rate=0.1,
        learning_rate=0.02,
        attack_steps=2,
    )
    rows, kernels = [], [trees.flatten(toy()[1].variables["params"])["Dense_0/kernel"]]

    def validate(classifier):
        kernels.append(trees.flatten(classifier.params)["Dense_0/kernel"])
        return {}

    trained = run_phases(method.phases(STEPS), log=rows.append, validate=validate)
    gone = [round(0.75 * n) for n in SIZES]
    assert removed(trained) == gone
    assert_pruned_exactly(trained)
    assert [row["density"] for row in rows] == [(sum(SIZES) - sum(gone)) / sum(SIZES)] * 4
    assert [row["phase"] for row in rows] == ["scores"] * 2 + ["finetune"] * 2
    before, _, chosen, *_, after = map(np.asarray, kernels)
    keep = np.asarray(trees.flatten(trained.mask)["Dense_0/kernel"])
    np.testing.assert_array_equal(chosen, before * keep)  # what fine-tuning begins with
    assert np.any((after != before)[keep])
    magnitude = trees.flatten(pruning.prune(toy()[1].variables["params"], 0.75))
    assert np.any(keep != magnitude["Dense_0/kernel"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criterion": "magnitude"}, "criterion is 'magnitude'.*leave it 'learned'"),
        ({"score_epochs": 0}, "score_epochs is 0"),
        ({"score_learning_rate": -0.1}, r"learning_rate is -0\.1"),
    ],
)
def test_what_cannot_be_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        methods.create("hydra", **options)
