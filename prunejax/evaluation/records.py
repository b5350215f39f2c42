"""One row an example, attack and budget, as Parquet: what every table and curve is computed from.

column        type      meaning
index         int32     number of the example in its split
label         int32     true class
prediction    int32     class predicted for the clean image
attack        string    name of the attack in the protocol
norm          string    in which budget and distance are measured
budget        float32   null for a minimum-norm attack
success       bool      adversarial, confirmed by a fresh forward pass
distance      float32   in the norm; 0: clean image misclassified, inf: nothing found
linf .. l0_pixels  float32  size of the perturbation that was found, in every norm; 0 where nothing
                            was, so take means of successes only
member      string    of a cascade's attacks the first that found it; null for other attacks, and
                      where nothing was found or needed
forwards    int32     forward passes that were spent on it at this budget: 0 where it is recorded
                      again, having fallen at a smaller one
backwards   int32     backward passes, as well
"""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prunejax import norms
from prunejax.attacks.diagnostics import Doubt, sentences

SCHEMA = pa.schema(
    [
        ("index", pa.int32()),
        ("label", pa.int32()),
        ("prediction", pa.int32()),
        ("attack", pa.string()),
        ("norm", pa.string()),
        ("budget", pa.float32()),
        ("success", pa.bool_()),
        ("distance", pa.float32()),
        *((name, pa.float32()) for name in norms.NORMS),
        ("member", pa.string()),
        ("forwards", pa.int32()),
        ("backwards", pa.int32()),
    ]
)


def table(columns: Mapping[str, object]) -> pa.Table:
    """Columns of one attack, single values repeated, as a table of records."""
    rows = len(columns["index"])

    def column(field: pa.Field) -> pa.Array:
        value = columns[field.name]
        values = value if np.ndim(value) else [value] * rows
        return pa.array(values, field.type)

    return pa.table([column(field) for field in SCHEMA], schema=SCHEMA)


def write(
    path: str | pathlib.Path, records: pa.Table, settings: str, doubts: Sequence[Doubt] = ()
) -> None:
    """Writes the records; whoever looks sees the old file or the new one, never half of one.

    Args:
      path: of the Parquet file.
      records: the table.
      settings: what they were made with, kept in the file for `read`.
      doubts: reasons to doubt them, kept in the file for `doubts_in` and `warnings_in`.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        notes = {"settings": settings, "warnings": json.dumps(list(doubts))}
        pq.write_table(records.replace_schema_metadata(notes), unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def read(path: str | pathlib.Path, settings: str | None = None) -> pa.Table | None:
    """The records of a file; None where there is no file, or where it was made otherwise.

    Args:
      path: of the Parquet file.
      settings: what they must have been made with, and all columns be there; anything where None.

    Raises:
      ValueError: the file is damaged.
    """
    path = pathlib.Path(path)
    if not path.exists():
        return None
    with _named(path):
        records = pq.read_table(path)
    made_with = (records.schema.metadata or {}).get(b"settings", b"").decode()
    as_asked = settings == made_with and records.schema.equals(SCHEMA)
    return records if settings is None or as_asked else None


def warnings_in(path: str | pathlib.Path) -> list[str]:
    """The reasons to doubt the records of a file, a sentence each; none where there is no file.

    Raises:
      ValueError: the file is damaged.
    """
    return sentences(doubts_in(path))


def doubts_in(path: str | pathlib.Path) -> list[Doubt]:
    """What `warnings_in` puts together: at each budget, and counts of 0 too."""
    if not pathlib.Path(path).exists():
        return []
    with _named(path):
        metadata = pq.read_schema(path).metadata or {}
    written = json.loads(metadata.get(b"warnings", b"[]"))
    # Older records hold sentences alone.
    return [Doubt(one, one) if isinstance(one, str) else Doubt(*one) for one in written]


@contextlib.contextmanager
def _named(path: str | pathlib.Path) -> Iterator[None]:
    """Gives Arrow's errors the name of the file, and a way out."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if getattr(error, "errno", None):  # the system's: the file may be as it should be
            raise
        raise ValueError(
            f"{path} is damaged ({error}). Remove it, and its examples are attacked again."
        ) from error


def read_all(directory: str | pathlib.Path) -> pa.Table:
    """All records of a folder in one table.

    Raises:
      FileNotFoundError: there are none.
      ValueError: one of them is damaged.
    """
    paths = sorted(pathlib.Path(directory).glob("*.parquet"))
    if not paths:
        raise FileNotFoundError(f"No records in {directory}; make them with experiments.evaluate.")
    tables = [read(path).replace_schema_metadata() for path in paths]
    # Of records that are older than a column, its values are null.
    return pa.concat_tables(tables, promote_options="default")
