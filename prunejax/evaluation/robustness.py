"""Attacks a classifier as a protocol says, and reads accuracies off the records."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prunejax import attacks, norms
from prunejax.attacks import Attack
from prunejax.classifier import Classifier
from prunejax.data import Dataset
from prunejax.evaluation import records

Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Protocol:
    """One attack of an evaluation, and the budgets at which to look.

    Attributes:
      name: of the records file and in tables.
      attack: the attack.
      budgets: increasing, in the attack's norm. A fixed-budget attack runs at each; a minimum-norm
        attack runs once, whatever they are.
      stated: the one budget that tables quote.
    """

    name: str
    attack: Attack
    budgets: tuple[float, ...]
    stated: float

    def __post_init__(self):
        if list(self.budgets) != sorted(set(self.budgets)) or not self.budgets:
            raise ValueError(
                f"budgets of {self.name!r} is {self.budgets}; increasing ones are needed."
            )
        if min(self.budgets) < 0:
            raise ValueError(f"budgets of {self.name!r} is {self.budgets}; none may be negative.")
        if not self.attack.minimum_norm and self.stated not in self.budgets:
            raise ValueError(
                f"stated budget {self.stated} of {self.name!r} is not in {self.budgets}."
            )


def predict(classifier: Classifier, images: np.ndarray, batch_size: int = 512) -> np.ndarray:
    """Predicted classes `[N]` of images `[N, ...]` in [0, 1]."""
    size = min(batch_size, len(images))
    with jax.default_matmul_precision("highest"):
        classes = []
        for first in range(0, len(images), size):
            batch = images[first : first + size]
            # Padded to one size, so that one program serves all batches.
            padded = np.concatenate([batch, np.repeat(batch[:1], size - len(batch), axis=0)])
            classes.append(np.asarray(_predict(classifier, padded))[: len(batch)])
    return np.concatenate(classes)


@jax.jit
def _predict(classifier, images):
    return jnp.argmax(classifier(images), axis=-1)


def evaluate(
    classifier: Classifier,
    dataset: Dataset,
    protocols: Sequence[Protocol],
    directory: str | pathlib.Path,
    *,
    seed: int = 0,
    batch_size: int = 256,
    progress: Progress = lambda name, done, total: None,
) -> pa.Table:
    """Runs every attack at every budget and leaves the records; what is there already is kept.

    An example that fell at a smaller budget has fallen at every larger one: the same image is in
    the larger ball, so it is recorded again and not attacked.

    Args:
      classifier: under attack.
      dataset: the attacked examples, the same for every classifier compared.
      protocols: which attacks.
      directory: one Parquet file an attack; written after each budget.
      seed: of the attacks' random numbers.
      batch_size: examples under attack at a time.
      progress: called with (protocol name, examples done, examples in all).

    Returns:
      All records of the protocols.
    """
    images = dataset.images.astype(np.float32) / 255
    predictions = predict(classifier, images)
    tables = []
    for protocol in protocols:
        path = pathlib.Path(directory) / f"{protocol.name}.parquet"
        settings = _settings(classifier, dataset, protocol.attack, seed)
        done = records.read(path, settings)
        done = records.SCHEMA.empty_table() if done is None else done.replace_schema_metadata()
        budgets = [None] if protocol.attack.minimum_norm else protocol.budgets
        for number, budget in enumerate(budgets):
            if len(at_budget(done, budget)):
                continue
            fallen = _fallen(done, budget)
            before, total = number * len(images) + len(fallen), len(budgets) * len(images)

            def report(examples, _, name=protocol.name, before=before, total=total):
                progress(name, before + examples, total)

            standing = np.setdiff1d(np.arange(len(images)), fallen["index"].to_numpy())
            parts = [done, _with_budget(fallen, budget)]
            if len(standing):
                result = attacks.run(
                    protocol.attack,
                    classifier,
                    images[standing],
                    dataset.labels[standing],
                    key=jax.random.key(seed),
                    eps=budget,
                    indices=standing,
                    batch_size=batch_size,
                    progress=report,
                )
                perturbations = result.images - images[standing]
                parts.append(
                    records.table(
                        {
                            "index": standing,
                            "label": dataset.labels[standing],
                            "prediction": predictions[standing],
                            "attack": protocol.name,
                            "norm": protocol.attack.norm,
                            "budget": budget,
                            "success": result.success,
                            "distance": result.distance,
                            **_sizes(perturbations),
                        }
                    )
                )
            done = pa.concat_tables(parts)
            records.write(path, done, settings)
        tables.append(done)
    return pa.concat_tables(tables)


def at_budget(table: pa.Table, budget: float | None) -> pa.Table:
    """The rows of one budget; None selects those of minimum-norm attacks."""
    if budget is None:
        return table.filter(pc.is_null(table["budget"]))
    return table.filter(pc.equal(table["budget"], pa.scalar(budget, pa.float32())))


def clean_accuracy(table: pa.Table) -> float:
    """Share of the recorded examples that are classified right without an attack."""
    first = table.group_by("index").aggregate([("label", "min"), ("prediction", "min")])
    return float(np.mean(first["label_min"].to_numpy() == first["prediction_min"].to_numpy()))


def robust_accuracy(table: pa.Table, budget: float) -> float:
    """Share of the examples that one attack leaves right at `budget`.

    Args:
      table: records of one attack on one classifier.
      budget: for a minimum-norm attack any; otherwise one that it was run at.

    Raises:
      ValueError: a fixed-budget attack that was not run at this budget.
    """
    minimum_norm = at_budget(table, None)
    if len(minimum_norm):
        return float(np.mean(minimum_norm["distance"].to_numpy() > budget))
    rows = at_budget(table, budget)
    if not len(rows):
        tried = sorted(set(table["budget"].to_pylist()))
        raise ValueError(f"budget is {budget}; the attack was run at {tried}.")
    return float(1 - np.mean(rows["success"].to_numpy()))


def _fallen(done: pa.Table, budget: float | None) -> pa.Table:
    """For each example that fell at a smaller budget, its record at the smallest of them."""
    if budget is None:
        return records.SCHEMA.empty_table()
    smaller = pc.less(done["budget"], pa.scalar(budget, pa.float32()))
    fell = done.filter(pc.and_(smaller, done["success"])).sort_by([("budget", "ascending")])
    _, first = np.unique(fell["index"].to_numpy(), return_index=True)
    return fell.take(pa.array(first))


def _with_budget(table: pa.Table, budget: float | None) -> pa.Table:
    column = records.SCHEMA.get_field_index("budget")
    values = pa.array([budget] * len(table), pa.float32())
    return table.set_column(column, records.SCHEMA.field(column), values)


def _sizes(perturbations: np.ndarray) -> dict[str, np.ndarray]:
    """Size of each perturbation in every norm."""
    return {
        name: np.asarray(jax.jit(jax.vmap(norm.distance))(perturbations))
        for name, norm in norms.NORMS.items()
    }


def _settings(classifier: Classifier, dataset: Dataset, attack: Attack, seed: int) -> str:
    """What a record depends on, as JSON."""
    weights = hashlib.sha256()
    for leaf in jax.tree.leaves(classifier.variables):
        weights.update(np.asarray(leaf).tobytes())
    return json.dumps(
        {
            "attack": type(attack).__name__,
            **dataclasses.asdict(attack),
            "data": [dataset.name, dataset.split, len(dataset)],
            "seed": seed,
            "weights": weights.hexdigest(),
        },
        sort_keys=True,
    )
