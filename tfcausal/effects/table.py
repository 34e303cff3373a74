"""The table of effects: one row per model, level, node, intervention and class, in a parquet file.

A level is the layer whose concepts are intervened on, a node one of its concepts. A row on the image as a whole has no
level, and node -1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas
import pyarrow
import pyarrow.parquet

from tfcausal.atomic import atomic_path, cannot_write
from tfcausal.config_errors import closest
from tfcausal.errors import InvalidArgument, RunError, message

if TYPE_CHECKING:
    from tfcausal.effects.results import EffectSummary

TEXT, WHOLE, NUMBER, FLAG = pyarrow.string(), pyarrow.int64(), pyarrow.float64(), pyarrow.bool_()

EFFECTS = pyarrow.schema(
    [
        pyarrow.field("model", TEXT, nullable=False),
        pyarrow.field("level", TEXT),  # null: the image
        pyarrow.field("node", WHOLE, nullable=False),  # -1: the image
        pyarrow.field("intervention", TEXT, nullable=False),
        pyarrow.field("value", NUMBER),  # what the concept was set to; null where it is not one number
        pyarrow.field("class", WHOLE, nullable=False),  # -1: all classes, weighted by their posterior
        pyarrow.field("class_name", TEXT),
        pyarrow.field("effect", NUMBER, nullable=False),
        pyarrow.field("low", NUMBER),  # null: a single image has no interval
        pyarrow.field("high", NUMBER),
        pyarrow.field("n", WHOLE, nullable=False),
        pyarrow.field("reference", TEXT, nullable=False),
        pyarrow.field("sign", TEXT, nullable=False),
        pyarrow.field("weighting", TEXT, nullable=False),
        pyarrow.field("scale", TEXT, nullable=False),
        pyarrow.field("dead", FLAG, nullable=False),  # the concept is the same at all places of all images
        pyarrow.field("faithful", FLAG, nullable=False),  # the network answers through the autoencoder as without it
    ]
)
"""The columns of the table of effects."""

DETECTION = pyarrow.schema(
    [
        pyarrow.field("model", TEXT, nullable=False),
        pyarrow.field("level", TEXT),  # null: a detector that needs no concepts
        pyarrow.field("detector", TEXT, nullable=False),
        pyarrow.field("attack", TEXT, nullable=False),
        pyarrow.field("fitted_on", TEXT, nullable=False),
        pyarrow.field("features", WHOLE, nullable=False),
        pyarrow.field("auc", NUMBER),  # null: too few images, or attacks that succeed
        pyarrow.field("low", NUMBER),
        pyarrow.field("high", NUMBER),
        pyarrow.field("over_confidence", NUMBER),  # auc minus that of the detector `confidence`
        pyarrow.field("over_confidence_low", NUMBER),
        pyarrow.field("over_confidence_high", NUMBER),
        pyarrow.field("n_clean", WHOLE, nullable=False),
        pyarrow.field("n_attacked", WHOLE, nullable=False),
        pyarrow.field("n_successful", WHOLE),
        pyarrow.field("only_successful", FLAG, nullable=False),
        pyarrow.field("threshold", NUMBER),  # chosen on the validation part
        *(
            pyarrow.field(f"{rate}_positive_rate{end}", NUMBER)
            for rate in ("true", "false")
            for end in ("", "_low", "_high")
        ),
    ]
)
"""The columns of the table of detectors."""


@dataclass(frozen=True)
class Measurement:
    """What was measured, for all rows of one summary.

    Attributes:
        model: Name of the model.
        level: The layer, its name or path; None for interventions on the image as a whole.
        intervention: What was done, such as `zero_out` or `zero_out+fgsm`.
        reference: What the effects refer to: `autoencoder`, or `model`, also for interventions on the image.
        sign: Which way round they are.
        weighting: How the classes are put together.
        scale: `probability` or `logit`.
    """

    model: str
    level: str | None
    intervention: str
    reference: str
    sign: str
    weighting: str
    scale: str


def effect_rows(
    summary: EffectSummary, measurement: Measurement, class_names: Sequence[str] | None = None
) -> pandas.DataFrame:
    """The rows of one summary.

    Args:
        summary: Effects of every node, value and class; every node a single concept, or the image.
        measurement: What was measured.
        class_names: Names of the classes by index; None where they are unknown.

    Returns:
        One row per node, value and class, with the columns of :data:`EFFECTS`.

    Raises:
        InvalidArgument: A node is several concepts at once, for which the table has no place.
    """
    joint = [node for node in summary.nodes if not isinstance(node, int)]
    if joint:
        remedy = "EffectSummary.columns() has a column for several."
        raise InvalidArgument(message("summary", "nodes of one concept each", f"the node {joint[0]}", remedy))
    columns = summary.columns()
    classes = columns["class"]
    names = [None if class_names is None or index < 0 else class_names[index] for index in classes]
    count = len(classes)
    of_all = {
        "model": measurement.model,
        "level": measurement.level,
        "intervention": measurement.intervention,
        "reference": measurement.reference,
        "sign": measurement.sign,
        "weighting": measurement.weighting,
        "scale": measurement.scale,
    }
    known: dict[str, Any] = {
        **{name: columns[name] for name in ("node", "value", "class", "effect", "low", "high", "n", "dead")},
        **{name: [value] * count for name, value in of_all.items()},
        "faithful": columns["causal"],
        "class_name": names,
    }
    return as_frame(EFFECTS, known)


def as_frame(schema: pyarrow.Schema, columns: Mapping[str, Any] | pandas.DataFrame) -> pandas.DataFrame:
    """Columns as a table of pandas with exactly the columns and types of a schema.

    Args:
        schema: The schema.
        columns: Values by column, all equally many, or a table. NaN stands for null.

    Raises:
        InvalidArgument: A column is missing or unknown, has values of another type, or lacks a value that it must have.
    """
    return _as_table(schema, columns).to_pandas()


def write_table(path: str | Path, schema: pyarrow.Schema, frame: pandas.DataFrame) -> None:
    """Write a table as parquet: the whole file, or nothing.

    Args:
        path: The file; it is replaced.
        schema: What the table must look like.
        frame: The rows.

    Raises:
        InvalidArgument: As for :func:`as_frame`.
        RunError: The file cannot be written.
    """
    table = _as_table(schema, frame)
    with atomic_path(path) as partial:
        try:
            pyarrow.parquet.write_table(table, partial)
        except OSError as error:
            raise cannot_write(Path(path), error) from error


class ParquetTable:
    """A parquet file of a known schema, read when it is asked for, and no more of it than that.

    Args:
        path: The file.
        schema: The columns that it must have.

    Raises:
        RunError: There is no such file, it is damaged, or it has other columns.

    Example:
        >>> import tempfile
        >>> schema = pyarrow.schema([("model", pyarrow.string()), ("effect", pyarrow.float64())])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "effects.parquet")
        ...     frame = pandas.DataFrame({"model": ["plain", "ppi"], "effect": [0.5, -0.25]})
        ...     write_table(path, schema, frame)
        ...     table = ParquetTable(path, schema)
        ...     len(table), table.read(model="ppi")["effect"].tolist(), table.values("model")
        (2, [-0.25], ['plain', 'ppi'])
    """

    def __init__(self, path: str | Path, schema: pyarrow.Schema = EFFECTS) -> None:
        self.path, self.schema = Path(path), schema
        if not self.path.is_file():
            raise RunError(f"{self.path}: expected a table; there is none. Measure effects with `tfcausal effects`.")
        found = self._metadata.schema.to_arrow_schema()
        if not found.equals(schema):
            missing = [field.name for field in schema if field.name not in found.names]
            received = f"one without {', '.join(missing)}" if missing else "columns of other types, or further ones"
            raise RunError(
                f"{self.path}: expected a table with {', '.join(schema.names)}; received {received}.{_AGAIN}"
            )

    def __len__(self) -> int:
        return int(self._metadata.num_rows)

    def read(self, columns: Sequence[str] | None = None, **equal: Any) -> pandas.DataFrame:
        """Read rows.

        Args:
            columns: The columns to read; None for all.
            **equal: What the rows must have, by column: `model="plain", level=["conv1", "conv2"]`. The column `class`
                is asked for with `**{"class": 3}`.

        Returns:
            The rows that have all of it, in the order of the file.

        Raises:
            InvalidArgument: There is no such column.
            RunError: The file is damaged.
        """
        for name in [*(columns or ()), *equal]:
            if name not in self.schema.names:
                remedy = closest(name, self.schema.names, "columns")
                raise InvalidArgument(message("columns", "columns of the table", repr(name), remedy))
        wanted = [(name, "in", list(value) if _is_list(value) else [value]) for name, value in equal.items()]
        try:
            table = pyarrow.parquet.read_table(
                self.path, columns=None if columns is None else list(columns), filters=wanted or None
            )
        except (OSError, pyarrow.ArrowException) as error:
            raise _damaged(self.path, error) from None
        return table.to_pandas()

    def values(self, column: str) -> list[Any]:
        """What a column has, each once, in the order of its first row."""
        return list(dict.fromkeys(self.read([column])[column].tolist()))

    @cached_property
    def _metadata(self) -> Any:
        try:
            return pyarrow.parquet.read_metadata(self.path)
        except (OSError, pyarrow.ArrowException) as error:
            raise _damaged(self.path, error) from None


_AGAIN = " Measure again with `tfcausal effects --overwrite`."


def _damaged(path: Path, error: Exception) -> RunError:
    return RunError(f"{path}: expected a parquet table; it cannot be read ({' '.join(str(error).split())}).{_AGAIN}")


def _is_list(value: object) -> bool:
    return isinstance(value, list | tuple | np.ndarray)


def _as_table(schema: pyarrow.Schema, columns: Mapping[str, Any] | pandas.DataFrame) -> Any:
    """An arrow table of the schema."""
    missing = [name for name in schema.names if name not in columns]
    unknown = [str(name) for name in columns if name not in schema.names]
    if missing or unknown:
        received = ", ".join([*(f"no `{name}`" for name in missing), *(f"also `{name}`" for name in unknown)])
        raise InvalidArgument(message("columns", f"exactly {', '.join(schema.names)}", received))
    arrays = []
    for field in schema:
        values = columns[field.name]
        try:
            array = pyarrow.array(values, type=field.type, from_pandas=True)
        except (pyarrow.ArrowException, TypeError, ValueError, OverflowError) as error:
            reason = f"others ({' '.join(str(error).split())})"
            raise InvalidArgument(message(field.name, f"values of type {field.type}", reason)) from None
        if array.null_count and not field.nullable:
            raise InvalidArgument(message(field.name, "a value in every row", f"{array.null_count} rows without one"))
        arrays.append(array)
    lengths = {len(array) for array in arrays}
    if len(lengths) > 1:
        raise InvalidArgument(message("columns", "equally many values in all", f"{sorted(lengths)}"))
    return pyarrow.Table.from_arrays(arrays, schema=schema)
