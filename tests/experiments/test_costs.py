"""What networks cost, from their runs' folders: closed forms of a small MLP."""

import json

import jax.numpy as jnp
import pytest

from experiments import costs
from experiments.configs import digits_dense
from prunejax import masks, reporting
from prunejax.evaluation.efficiency import Efficiency, Layer
from tests.experiments import untrained


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of two networks of 64 inputs, 5 units and 10 classes: whole, and pruned."""
    config = digits_dense.get_config()
    config.model.name = "mlp"
    config.model.options.widths = (5,)

    def pruned(params):
        left = jnp.arange(64)[:, None] % 4 == jnp.zeros((1, 5), int)  # 80 of 320 weights
        whole = masks.dense(params)
        return whole | {"Dense_0": whole["Dense_0"] | {"kernel": left}}

    folders = {name: tmp_path_factory.mktemp(name) for name in ("whole", "pruned")}
    untrained.write(folders["whole"], config)
    untrained.write(folders["pruned"], config, pruned)
    return folders


def test_table_and_numbers_are_those_of_the_networks(runs, tmp_path):
    calls = []
    table = costs.write_costs(runs, tmp_path, batch_size=2, report=lambda *call: calls.append(call))
    rows = list(zip(*(column.cells for column in table.columns), strict=True))
    # 64 x 5 and 5 x 10 weights, of which none of 240 + 0 are left out; biases begin at zero.
    assert rows[0][:7] == ("whole", "1.0000", "1.0000", "385", "370", "0.00", "0.00")
    assert rows[1][:7] == ("pruned", "0.2500", f"{130 / 370:.4f}", "385", "130", "0.00", "0.00")
    assert "a batch of 2" in table.caption

    found = json.loads((tmp_path / "costs.json").read_text())
    assert found["pruned"]["flops"] == found["whole"]["flops"] == 2 * 370
    assert found["pruned"]["effective_flops"] == 2 * 130
    assert found["pruned"]["layers"][0] == {
        "path": "Dense_0/kernel",
        "weights": 320,
        "nonzero": 80,
        "flops": 640,
        "effective_flops": 160,
    }
    assert {path.name for path in tmp_path.iterdir()} == {
        "costs.json",
        *(f"{name}_layers.{suffix}" for name in runs for suffix in ("png", "pdf")),
    }
    assert [call for call in calls if call[0] == "time pruned"] == [
        ("time pruned", done, 10) for done in range(11)
    ]


def cost(batch_size: int) -> Efficiency:
    layers = (Layer("a/kernel", 10, 4, 200, 80), Layer("b/kernel", 6, 6, 12, 12))
    return Efficiency(layers, 18, 12, 0.4, 10 / 16, 212, 92, 100, 0.5, 4.0, batch_size, 2**20)


def test_the_figure_shows_all_and_what_is_left_of_each_layer():
    weights, flops = reporting.cost_figure(cost(2)).axes
    assert [label.get_text() for label in weights.get_yticklabels()] == ["a/kernel", "b/kernel"]
    assert [bar.get_width() for bar in weights.patches] == [10, 6, 4, 6]
    assert [bar.get_width() for bar in flops.patches] == [200, 12, 80, 12]


def test_costs_of_different_batches_are_not_compared():
    with pytest.raises(ValueError, match=r"batches of \[2, 3\] images; measure all at one"):
        reporting.cost_table({"a": cost(2), "b": cost(3)})
