"""Attacks a classifier as protocols say, and leaves a record of each attacked example."""

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

from prunejax import checks, precision, trees
from prunejax.attacks import Attack, Cascade, cascade
from prunejax.attacks.diagnostics import Doubt, added
from prunejax.attacks.inputs import Inputs
from prunejax.attacks.lanes import lane_count, lanes_of
from prunejax.canonical import canonical
from prunejax.classifier import Classifier
from prunejax.data import Dataset
from prunejax.evaluation import records
from prunejax.evaluation.accuracy import at_budget
from prunejax.evaluation.protocol import Protocol

Progress = Callable[[str, int, int], None]

# Records are written after as many examples as fill the lanes that often: a run which is stopped
# loses no more. At the end of each part lanes run empty, so not after every one; and with two, no
# part has fewer examples than lanes.
ROUNDS_A_WRITE = 2
FOUND = ("success", "distance", "forwards", "backwards")  # of results, by the names of the columns


@precision.single()
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

    Raises:
      ValueError: no images, or a batch size that is no integer of at least 1.
    """
    if not len(images):
        raise ValueError("images is empty; predictions need some.")
    checks.integer("batch_size", batch_size, least=1)
    size = min(batch_size, len(images))
    progress(0, len(images))
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
    logits = canonical(classifier)(images)
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

    What is there already is kept if data, attack, seed, network and variables are the same; of a
    plain function in the place of the network, if its name and its predictions are. Of one that
    holds its weights itself, without variables, that says too little: its records are made anew
    each time. Warnings that count examples count those of the budget at which they are most.

    Args:
      classifier: under attack.
      dataset: the attacked examples, the same for every classifier compared.
      protocols: which attacks, each with a name of its own.
      directory: one Parquet file an attack, written every 2 `batch_size` examples or sooner.
      seed: of the attacks' random numbers.
      batch_size: examples under attack at a time.
      progress: called with (what is done, examples done, examples in all), where what is done is
        "predictions" or the name of a protocol; first before any example.

    Returns:
      All records of the protocols.

    Raises:
      ValueError: two protocols of one name, what `attacks.run` refuses, or damaged records.
    """
    names = [protocol.name for protocol in protocols]
    if len(set(names)) < len(names):
        raise ValueError(f"protocols has the names {names}; each may appear once.")
    images = dataset.images.astype(np.float32) / 255
    runs = [
        _runs(protocol, classifier, images, dataset.labels, seed, batch_size)
        for protocol in protocols
    ]
    predictions = predict(classifier, images, progress=functools.partial(progress, "predictions"))
    tables = []
    for protocol, run in zip(protocols, runs, strict=True):
        settings = _settings(classifier, dataset, protocol.attack, seed, predictions)
        identified = bool(jax.tree.leaves(classifier.variables))
        path = pathlib.Path(directory) / f"{protocol.name}.parquet"
        kept = _Kept(path, settings, protocol.attack, len(images), resume=identified)
        for number, (budget, given) in enumerate(run):
            kept.add(_fallen(kept.rows, budget))
            for part in _parts(kept.missing(budget), batch_size):
                before = (number + 1) * len(images) - len(kept.missing(budget))

                def report(steps, all_, name=protocol.name, before=before, run=run, part=part):
                    # A cascade takes as many steps for each example as it has members.
                    progress(name, before + steps * len(part) // all_, len(run) * len(images))

                report(0, 1)  # while the attack is compiled
                found = _attack_together(protocol.attack, classifier, given.of(part), report)
                whose = {"label": dataset.labels[part], "prediction": predictions[part]}
                rows = _rows(protocol, budget, {"index": part, **whose}, found)
                at = None if budget is None else float(np.float32(budget))
                kept.add(rows, [doubt._replace(budget=at) for doubt in found["doubts"]])
        for budget in kept.rows["budget"].unique().drop_null().to_pylist():
            kept.add(_fallen(kept.rows, budget))  # also those of earlier calls
        tables.append(kept.rows)
    return pa.concat_tables(tables)


class _Kept:
    """One attack's records so far, on disk after each change, and the reasons to doubt them."""

    def __init__(self, path, settings, attack, examples: int, *, resume: bool):
        self.path, self.settings, self.attack, self.examples = path, settings, attack, examples
        done = records.read(path, settings) if resume else None
        known = [] if done is None else records.doubts_in(path)
        done = records.SCHEMA.empty_table() if done is None else done
        self.rows = done.replace_schema_metadata()
        self.doubts = [doubt for doubt in known if doubt.kind != "masked"]  # counted anew

    def missing(self, budget: float | None) -> np.ndarray:
        """The examples without a record at a budget."""
        return np.setdiff1d(np.arange(self.examples), at_budget(self.rows, budget)["index"])

    def add(self, rows: pa.Table, doubts: Sequence[Doubt] = ()) -> None:
        """Puts these, all of one budget, in the place of those of the same examples."""
        self.doubts = added([*self.doubts, *doubts])
        if not len(rows):
            return
        here = pc.fill_null(pc.equal(self.rows["budget"], rows["budget"][0]), False)
        same = pc.and_(here, pc.is_in(self.rows["index"], rows["index"]))
        self.rows = pa.concat_tables([self.rows.filter(pc.invert(same)), rows])
        if jax.process_index() == 0:
            said = [*self.doubts, *_masked(self.rows, self.attack, self.examples)]
            records.write(self.path, self.rows, self.settings, said)


def _rows(
    protocol: Protocol, budget: float | None, whose: dict[str, np.ndarray], found: dict[str, Any]
) -> pa.Table:
    """What was found at a budget for the examples that `whose` names."""
    members = dict(enumerate(name for name, _ in cascade.members_of(protocol.attack)))
    return records.table(
        {
            **whose,
            "attack": protocol.name,
            "norm": protocol.attack.norm,
            "budget": budget,
            "member": [members.get(number) for number in found["by"]],
            **found["sizes"],
            **{name: found[name] for name in FOUND},
        }
    )


def _runs(
    protocol: Protocol,
    classifier: Classifier,
    images: np.ndarray,
    labels: np.ndarray,
    seed: int,
    batch_size: int,
) -> list[tuple[float | None, Inputs]]:
    """Budgets, and what is attacked at each, in lanes as for all examples."""
    key = jax.random.key(seed)

    def given(budget: float | None) -> Inputs:
        whole = cascade.checked(
            protocol.attack, classifier, images, labels,
            key=key, eps=budget, batch_size=batch_size,
        )  # fmt: skip
        return whole._replace(width=lane_count(_share(len(images)), batch_size, whole.mesh.size))

    return [(budget, given(budget)) for budget in protocol.runs_at]


def _parts(indices: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Examples to attack between two writes: as few parts as may be, and equal but for one example.

    With `batch_size` lanes in each process.
    """
    most = max(1, ROUNDS_A_WRITE * batch_size * jax.process_count())  # attacks.run refuses less
    return np.array_split(indices, -(-len(indices) // most)) if len(indices) else []


def _attack_together(
    attack: Attack | Cascade,
    classifier: Classifier,
    given: Inputs,
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """Attacks these examples; of several processes each does a share, and all get the whole."""
    number, processes = len(given.images), jax.process_count()
    share = _share(number)
    given = given._replace(width=lanes_of(share, given.width, given.mesh.size))
    # Shares of one size: some are done twice.
    padded = np.resize(np.arange(number), (processes, share))
    result = cascade.run_on(attack, classifier, given.of(padded[jax.process_index()]), progress)
    found = {name: getattr(result, name) for name in (*FOUND, "sizes")}
    found["by"] = result.by if isinstance(attack, Cascade) else np.full(share, -1)
    if processes > 1:
        found = jax.tree.map(np.ravel, multihost_utils.process_allgather(found))
    found = jax.tree.map(lambda part: part[:number], found)
    return found | {"doubts": _of_all_processes(result.doubts())}


def _share(examples: int) -> int:
    """Of each process."""
    return -(-examples // jax.process_count())


def _masked(done: pa.Table, attack: Attack | Cascade, examples: int) -> list[Doubt]:
    """`cascade.masked` of the whole evaluation, as far as it is recorded."""
    names = attack.after_gradients if isinstance(attack, Cascade) else ()
    fell = done.filter(pc.is_in(done["member"], pa.array(names, pa.string())))
    return cascade.masked(np.isin(np.arange(examples), fell["index"].to_numpy()))


def _of_all_processes(doubts: list[Doubt]) -> list[Doubt]:
    """Those of all processes, whose shares are different examples."""
    text = np.frombuffer(json.dumps(doubts).encode(), np.uint8)
    longest = np.max(multihost_utils.process_allgather(np.int32(len(text))))
    # What is gathered has one shape; blanks after JSON mean nothing.
    padded = np.pad(text, (0, longest - len(text)), constant_values=ord(" "))
    texts = multihost_utils.process_allgather(padded).reshape(-1, longest)
    return added(Doubt(*one) for text in texts for one in json.loads(text.tobytes()))


def _fallen(done: pa.Table, budget: float | None) -> pa.Table:
    """Records at `budget` that follow from smaller ones: of the smallest at which each one fell.

    Not of those that have fallen at `budget` by themselves. An evaluation at further budgets finds
    failures there that no longer are.
    """
    if budget is None:
        return records.SCHEMA.empty_table()
    smaller = pc.less(done["budget"], pa.scalar(budget, pa.float32()))
    fell = done.filter(pc.and_(smaller, done["success"])).sort_by([("budget", "ascending")])
    _, first = np.unique(fell["index"].to_numpy(), return_index=True)
    fell = fell.take(pa.array(first))
    here = at_budget(done, budget)
    here = here.filter(here["success"])
    fell = fell.filter(pc.invert(pc.is_in(fell["index"], here["index"])))
    spent = {"forwards": 0, "backwards": 0}
    return records.table(fell.to_pydict() | {"budget": budget} | spent)


def _settings(
    classifier: Classifier,
    dataset: Dataset,
    attack: Attack | Cascade,
    seed: int,
    predictions: np.ndarray,
) -> str:
    """What a record depends on, as JSON."""
    # A function's address says nothing of what it does, and is another one in each process. Nor
    # does its name: two functions of one name are told apart by what they predict.
    described = repr(classifier.apply_fn)
    network = re.sub(r" at 0x[0-9a-f]+", "", described)
    return json.dumps(
        {
            "attack": repr(attack),
            "data": [dataset.name, dataset.split, _digest((dataset.images, dataset.labels))],
            "network": hashlib.sha256(network.encode()).hexdigest(),
            "seed": seed,
            "weights": _digest(classifier.variables),
        }
        | ({} if network == described else {"predictions": _digest(predictions)}),
        sort_keys=True,
    )


def _digest(tree: Any) -> str:
    """Of all leaves of a tree: their paths, types, shapes and bits."""
    digest = hashlib.sha256()
    for path, leaf in trees.flatten(tree).items():
        if jnp.issubdtype(getattr(leaf, "dtype", type(leaf)), jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        leaf = np.asarray(leaf)
        digest.update(f"{path} {leaf.dtype} {leaf.shape} ".encode())
        digest.update(leaf.tobytes())
    return digest.hexdigest()
