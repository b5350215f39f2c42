"""What networks cost, from their runs' folders: closed forms of a small MLP."""

import json

import jax.numpy as jnp
import pytest

from experiments import costs
from experiments.configs import digits_dense
from prunejax import masks, reporting
from prunejax.evaluation.efficiency import Efficiency
from prunejax.evaluation.work import LayerCost
from tests.experiments import untrained


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of networks of 64 inputs, 1000 units and 10 classes: whole, pruned, and smaller."""
    config = digits_dense.get_config()
    config.model.name = "mlp"
    config.model.options.widths = (1000,)

    def pruned(params):
        left = jnp.arange(64)[:, None] % 4 == jnp.zeros((1, 1000), int)  # 16,000 of 64,000 weights
        return of_kernel(params, left)

    def of_kernel(params, left):
        whole = masks.dense(params)
        return whole | {"Dense_0": whole["Dense_0"] | {"kernel": left}}

    folders = {name: tmp_path_factory.mktemp(name) for name in ("whole", "pruned", "small")}
    untrained.write(folders["whole"], config)
    untrained.write(folders["pruned"], config, pruned)
    untrained.write_shrunk(
        folders["small"], config, lambda params: of_kernel(params, jnp.arange(1000)[None] < 300)
    )
    return folders


def test_table_and_numbers_are_those_of_the_networks(runs, tmp_path):
    calls, runs = [], {"seed1/small" if name == "small" else name: runs[name] for name in runs}
    table = costs.write_costs(runs, tmp_path, batch_size=2, report=lambda *call: calls.append(call))
    rows = list(zip(*(column.cells for column in table.columns), strict=True))
    # 64 x 1000 and 1000 x 10 weights, and with 300 units; biases begin at zero.
    assert rows[0][:7] == ("whole", "1.0000", "1.0000", "75,010", "74,000", "0.15", "0.15")
    assert rows[1][:7] == ("pruned", "0.2500", "0.3514", "75,010", "26,000", "0.15", "0.05")
    assert rows[2][:7] == ("seed1/small", "1.0000", "1.0000", "22,510", "22,200", "0.04", "0.04")
    assert "a batch of 2" in table.caption

    found = json.loads((tmp_path / "costs.json").read_text())
    assert found["pruned"]["flops"] == found["whole"]["flops"] == 2 * 74_000
    assert found["pruned"]["effective_flops"] == 2 * 26_000
    assert found["pruned"]["nominal_densities"] == {"Dense_0/kernel": 0.25}
    small = found["seed1/small"]
    assert small["flops"] == small["effective_flops"] == 2 * 22_200
    assert found["pruned"]["layers"][0] == {
        "path": "Dense_0/kernel",
        "weights": 64_000,
        "nonzero": 16_000,
        "flops": 128_000,
        "effective_flops": 32_000,
    }
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {
        "costs.json",
        *(f"{name}_layers.{suffix}" for name in runs for suffix in ("png", "pdf")),
    }
    assert [call for call in calls if call[0] == "time pruned"] == [
        ("time pruned", done, 10) for done in range(11)
    ]


def cost(batch_size: int) -> Efficiency:
    layers = (LayerCost("a/kernel", 10, 4, 200, 80), LayerCost("b/kernel", 6, 6, 12, 12))
    nominal = {"a/kernel": 0.4}
    return Efficiency(
        layers, 18, 12, 0.4, nominal, 10 / 16, 212, 92, 100, 0.5, 4.0, batch_size, 2**20
    )


def test_the_figure_shows_all_and_what_is_left_of_each_layer():
    weights, flops = reporting.cost_figure(cost(2)).axes
    assert [label.get_text() for label in weights.get_yticklabels()] == ["a/kernel", "b/kernel"]
    assert [bar.get_width() for bar in weights.patches] == [10, 6, 4, 6]
    assert [bar.get_width() for bar in flops.patches] == [200, 12, 80, 12]


def test_costs_of_different_batches_are_not_compared():
    with pytest.raises(ValueError, match=r"batches of \[2, 3\] images; measure all at one"):
        reporting.cost_table({"a": cost(2), "b": cost(3)})
