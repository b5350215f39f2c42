"""Attacks a classifier as a protocol says, and reads accuracies off the records."""

import dataclasses
import functools
import hashlib
import json
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jax.experimental import multihost_utils

from prunejax import attacks, trees
from prunejax.attacks import Attack, Cascade
from prunejax.classifier import Classifier
from prunejax.data import Dataset
from prunejax.evaluation import records

Progress = Callable[[str, int, int], None]

# Records are written after as many examples as fill the lanes that often: a run which is stopped
# loses no more. At the end of each part lanes run empty, so not after every one; and with two, no
# part has fewer examples than lanes, which would be programs of fewer lanes to compile.
ROUNDS_A_WRITE = 2
FOUND = ("success", "distance", "forwards", "backwards")  # of results, by the names of the columns


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
    attack: Attack | Cascade
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


def predict(
    classifier: Classifier,
    images: np.ndarray,
    batch_size: int = 512,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> np.ndarray:
    """Predicted classes `[N]` of images `[N, ...]` in [0, 1]; -1 where a logit is NaN.

    Args:
      classifier: the network.
      images: to classify.
      batch_size: images at a time.
      progress: called with (images done, images in all), first before any.
    """
    size = min(batch_size, len(images))
    progress(0, len(images))
    with jax.default_matmul_precision("highest"):
        classes = []
        for first in range(0, len(images), size):
            batch = images[first : first + size]
            # Padded to one size, so that one program serves all batches.
            padded = np.concatenate([batch, np.repeat(batch[:1], size - len(batch), axis=0)])
            classes.append(np.asarray(_predict(classifier, padded))[: len(batch)])
            progress(first + len(batch), len(images))
    return np.concatenate(classes)


@jax.jit
def _predict(classifier, images):
    logits = classifier(images)
    return jnp.where(jnp.isnan(logits).any(axis=-1), -1, jnp.argmax(logits, axis=-1))


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
    the larger ball, so it is recorded again and not attacked. Where several processes evaluate
    together, each attacks its share; the folder must be one that all of them see.

    Args:
      classifier: under attack.
      dataset: the attacked examples, the same for every classifier compared.
      protocols: which attacks.
      directory: one Parquet file an attack, written every 2 `batch_size` examples or sooner.
      seed: of the attacks' random numbers.
      batch_size: examples under attack at a time.
      progress: called with (what is done, examples done, examples in all), where what is done is
        "predictions" or the name of a protocol; first before any example.

    Returns:
      All records of the protocols.
    """
    images = dataset.images.astype(np.float32) / 255
    predictions = predict(classifier, images, progress=functools.partial(progress, "predictions"))
    tables = []
    for protocol in protocols:
        path = pathlib.Path(directory) / f"{protocol.name}.parquet"
        settings = _settings(classifier, dataset, protocol.attack, seed)
        done = records.read(path, settings)
        warnings = [] if done is None else records.warnings_in(path)
        done = records.SCHEMA.empty_table() if done is None else done.replace_schema_metadata()
        names = dict(enumerate(name for name, _ in _members(protocol.attack)))

        def add(rows, path=path, settings=settings, warnings=warnings):
            nonlocal done
            done = pa.concat_tables([done, rows])
            if len(rows) and jax.process_index() == 0:
                records.write(path, done, settings, warnings)

        budgets = _budgets(protocol)
        for number, budget in enumerate(budgets):
            add(_fallen(done, budget))
            missing = np.setdiff1d(np.arange(len(images)), at_budget(done, budget)["index"])
            for part in _parts(missing, batch_size):
                before = number * len(images) + len(at_budget(done, budget))

                def report(examples, _, name=protocol.name, before=before, budgets=budgets):
                    progress(name, before + examples, len(budgets) * len(images))

                report(0, None)  # while the attack is compiled
                found = _attack_together(
                    protocol.attack,
                    classifier,
                    images,
                    dataset.labels,
                    part,
                    key=jax.random.key(seed),
                    eps=budget,
                    batch_size=batch_size,
                    progress=report,
                )
                warnings += [each for each in found.pop("warnings") if each not in warnings]
                add(
                    records.table(
                        {
                            "index": part,
                            "label": dataset.labels[part],
                            "prediction": predictions[part],
                            "attack": protocol.name,
                            "norm": protocol.attack.norm,
                            "budget": budget,
                            "member": [names.get(number) for number in found["by"]],
                            **found["sizes"],
                            **{name: found[name] for name in FOUND},
                        }
                    )
                )
        tables.append(done)
    return pa.concat_tables(tables)


def _budgets(protocol: Protocol) -> Sequence[float | None]:
    return [None] if protocol.attack.minimum_norm else protocol.budgets


def is_complete(table: pa.Table, protocol: Protocol, examples: int) -> bool:
    """Whether an attack's records hold that many examples at every budget of the protocol."""
    return all(len(at_budget(table, budget)) == examples for budget in _budgets(protocol))


def _parts(indices: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Examples to attack between two writes: as few parts as may be, and equal but for one example.

    With `batch_size` lanes in each process.
    """
    most = max(1, ROUNDS_A_WRITE * batch_size * jax.process_count())  # attacks.run refuses less
    return np.array_split(indices, -(-len(indices) // most)) if len(indices) else []


def _attack_together(attack, classifier, images, labels, indices, **options) -> dict:
    """Attacks these examples; of several processes each does a share, and all get the whole."""
    processes = jax.process_count()
    share = -(-len(indices) // processes)
    padded = np.resize(indices, share * processes)  # shares of one size: some are done twice
    mine = padded.reshape(processes, share)[jax.process_index()]
    result = attacks.run(attack, classifier, images[mine], labels[mine], indices=mine, **options)
    found = {name: getattr(result, name) for name in (*FOUND, "sizes")}
    found["by"] = result.by if isinstance(attack, Cascade) else np.full(share, -1)
    if processes > 1:
        found = jax.tree.map(np.ravel, multihost_utils.process_allgather(found))
    found = jax.tree.map(lambda part: part[: len(indices)], found)
    return found | {"warnings": _of_all_processes(result.warnings())}


def _members(attack: Attack | Cascade) -> Sequence[tuple[str, Attack]]:
    return attack.members if isinstance(attack, Cascade) else ()


def _of_all_processes(sentences: list[str]) -> list[str]:
    """Those of all processes, each once."""
    text = np.frombuffer(json.dumps(sentences).encode(), np.uint8)
    longest = np.max(multihost_utils.process_allgather(np.int32(len(text))))
    # What is gathered has one shape; blanks after JSON mean nothing.
    padded = np.pad(text, (0, longest - len(text)), constant_values=ord(" "))
    texts = multihost_utils.process_allgather(padded).reshape(-1, longest)
    return list(dict.fromkeys(one for text in texts for one in json.loads(text.tobytes())))


def at_budget(table: pa.Table, budget: float | None) -> pa.Table:
    """The rows of one budget; None selects those of minimum-norm attacks."""
    if budget is None:
        return table.filter(pc.is_null(table["budget"]))
    return table.filter(pc.equal(table["budget"], pa.scalar(budget, pa.float32())))


def accuracies(table: pa.Table, protocols: Sequence[Protocol], examples: int) -> dict[str, Any]:
    """What records say of a network: the part of a summary that is computed from them alone.

    Args:
      table: all records of the network.
      protocols: the attacks; those whose records are not complete are left out.
      examples: how many were to be attacked.

    Returns:
      `clean_accuracy`, and `robust_accuracy`: for each attack its name, norm, stated budget, and
      the accuracy at that.
    """
    of = {p.name: table.filter(pc.equal(table["attack"], p.name)) for p in protocols}
    return {
        "clean_accuracy": clean_accuracy(table),
        "robust_accuracy": [
            {
                "attack": protocol.name,
                "norm": protocol.attack.norm,
                "budget": protocol.stated,
                "accuracy": robust_accuracy(of[protocol.name], protocol.stated),
            }
            for protocol in protocols
            if is_complete(of[protocol.name], protocol, examples)
        ],
    }


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
    """Records at `budget` that follow from smaller ones: of the smallest at which each one fell."""
    if budget is None:
        return records.SCHEMA.empty_table()
    smaller = pc.less(done["budget"], pa.scalar(budget, pa.float32()))
    fell = done.filter(pc.and_(smaller, done["success"])).sort_by([("budget", "ascending")])
    _, first = np.unique(fell["index"].to_numpy(), return_index=True)
    fell = fell.take(pa.array(first))
    fell = fell.filter(pc.invert(pc.is_in(fell["index"], at_budget(done, budget)["index"])))
    spent = {"forwards": 0, "backwards": 0}
    return records.table(fell.to_pydict() | {"budget": budget} | spent)


def _settings(classifier: Classifier, dataset: Dataset, attack: Attack | Cascade, seed: int) -> str:
    """What a record depends on, as JSON."""
    # A function's address says nothing of what it does, and is another one in each process.
    network = re.sub(r" at 0x[0-9a-f]+", "", repr(classifier.apply_fn))
    return json.dumps(
        {
            "attack": repr(attack),
            "data": [dataset.name, dataset.split, _digest((dataset.images, dataset.labels))],
            "network": hashlib.sha256(network.encode()).hexdigest(),
            "seed": seed,
            "weights": _digest(classifier.variables),
        },
        sort_keys=True,
    )


def _digest(tree: Any) -> str:
    """Of all leaves of a tree: their paths, types, shapes and numbers."""
    digest = hashlib.sha256()
    for path, leaf in trees.flatten(tree).items():
        leaf = np.asarray(leaf)
        digest.update(f"{path} {leaf.dtype} {leaf.shape} ".encode())
        digest.update(leaf.tobytes())
    return digest.hexdigest()
