"""Where the measured effects of models lie, and what of them is there already.

    <root>/                        a run directory, or a folder of its own
      effects.parquet              the effects of every model that is finished
      detection.parquet            how well attacked images are detected
      effects.zarr/<model>/        effect maps, and the images that they are of
      effects/<model>/
        settings.json              what is measured, and on what
        levels/<level>/            autoencoder.keras, agreement.json, effects.parquet
        *.png                      pictures
        finished.json              the findings in words and numbers, once everything is there

A file is there whole or not at all: a killed measurement goes on with what is missing, and gives the same numbers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas

from tfcausal.atomic import PARTIAL_PREFIX, remove, to_json, write_atomic
from tfcausal.effects.table import DETECTION, EFFECTS, ParquetTable, as_frame, write_table
from tfcausal.errors import RunError

AUTOENCODER = "autoencoder.keras"
"""What a level's autoencoder is called in its folder."""
_TABLES = {"effects.parquet": EFFECTS, "detection.parquet": DETECTION}


class EffectStore:
    """The effects of one model on disk.

    Args:
        root: The run directory, or the folder to write to.
        model: Name of the model, as it stands in the tables.

    Attributes:
        root: As given.
        model: As given.
        folder: Where what belongs to this model alone lies.
        maps: Where its maps lie.
        unfinished: Where what is needed until everything is measured lies; not there any more afterwards.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as root:
        ...     store = EffectStore(Path(root), "plain")
        ...     store.begin({"images": 64}, overwrite=False)
        ...     store.level("backbone/conv5").relative_to(root).as_posix(), store.is_finished
        ('effects/plain/levels/backbone_conv5', False)
    """

    def __init__(self, root: Path, model: str) -> None:
        self.root, self.model = Path(root), model
        self.folder = self.root / "effects" / model
        self.maps = self.root / "effects.zarr" / model
        self.unfinished = self.folder / "unfinished"
        self._levels: dict[str, Path] = {}

    @property
    def is_finished(self) -> bool:
        """Whether everything is there."""
        return (self.folder / "finished.json").is_file()

    @property
    def findings(self) -> dict[str, Any]:
        """What :meth:`finish` was given.

        Raises:
            RunError: It is not finished, or the file is damaged.
        """
        return read_json(self.folder / "finished.json")

    def check(self, settings: Mapping[str, Any], overwrite: bool) -> None:
        """Whether effects with these settings can be written here; writes nothing.

        Args:
            settings: What is measured and on what, for JSON.
            overwrite: Whether effects with other settings may be replaced.

        Raises:
            RunError: There are effects of this model with other settings, and they may not be replaced.
        """
        if self.root.exists() and not self.root.is_dir():
            raise RunError(f"{self.root}: expected a folder to write to; received a file. Choose another: --output.")
        path = self.folder / "settings.json"
        if overwrite or not self.folder.exists():
            return
        if not path.is_file():
            other = [item.name for item in self.folder.iterdir() if not item.name.startswith(PARTIAL_PREFIX)]
            if not other:  # killed before the settings were written
                return
            raise RunError(
                f"{self.folder}: expected effects, with settings.json; received {', '.join(sorted(other)[:3])}. Write "
                "to another folder: --output OTHER, or throw away what is there: --overwrite."
            )
        kept = read_json(path)
        now = json.loads(to_json(settings))
        changed = [name for name in {**kept, **now} if kept.get(name) != now.get(name)]
        if changed:
            place = "--output OTHER, or replace them with --overwrite"
            raise RunError(
                f"{self.folder} holds effects that were measured otherwise ({', '.join(changed)}). Write the new ones "
                f"to another folder: {place}."
            )

    def begin(self, settings: Mapping[str, Any], overwrite: bool) -> None:
        """Make the folder with its settings, or go on in it; what was left half-written is removed.

        Args:
            settings: As for :meth:`check`.
            overwrite: Whether what is there is thrown away, also where it was measured with the same settings.

        Raises:
            RunError: As for :meth:`check`.
        """
        self.check(settings, overwrite)
        if overwrite:
            # First the rows: what is measured otherwise must not be read as the new effects after a kill.
            self._write_tables({name: [] for name in _TABLES})
            remove(self.folder)
            remove(self.maps)
        for place in (self.folder, self.maps.parent):
            for path in place.rglob(f"{PARTIAL_PREFIX}*") if place == self.folder else place.glob(f"{PARTIAL_PREFIX}*"):
                remove(path)
        if not (self.folder / "settings.json").is_file():
            write_atomic(self.folder / "settings.json", to_json(settings))

    def level(self, layer: str) -> Path:
        """The folder of a level; no two levels have the same.

        Args:
            layer: The layer, its name or path.
        """
        if layer not in self._levels:
            name = re.sub(r"[^A-Za-z0-9._-]+", "_", layer).strip(".") or "level"
            taken = {path.name.casefold() for path in self._levels.values()}
            names = (name if number == 1 else f"{name}_{number}" for number in range(1, len(taken) + 2))
            free = next(candidate for candidate in names if candidate.casefold() not in taken)
            self._levels[layer] = self.folder / "levels" / free
        return self._levels[layer]

    def finish(self, parts: Mapping[str, Sequence[pandas.DataFrame]], findings: Mapping[str, Any]) -> None:
        """Put the rows of this model into the tables of all, in the place of older ones, and mark it as finished.

        Args:
            parts: By name of the table, its rows.
            findings: What else is to be told, for JSON.

        Raises:
            RunError: A table that is there is damaged.
        """
        self._write_tables(parts)
        write_atomic(self.folder / "finished.json", to_json(findings))

    def _write_tables(self, parts: Mapping[str, Sequence[pandas.DataFrame]]) -> None:
        for name, frames in parts.items():
            path, schema = self.root / name, _TABLES[name]
            others = (
                ParquetTable(path, schema).read() if path.exists() else as_frame(schema, {n: [] for n in schema.names})
            )
            rows = [others[others["model"] != self.model], *frames]
            kept = [frame for frame in rows if len(frame)]
            if kept:
                write_table(path, schema, pandas.concat(kept, ignore_index=True))
            elif path.exists():
                remove(path)


def finished_models(root: Path) -> list[str]:
    """The models whose effects are measured, in alphabetical order."""
    return sorted(path.parent.name for path in (root / "effects").glob("*/finished.json"))


def read_json(path: Path) -> dict[str, Any]:
    """An object that was written about effects.

    Args:
        path: The file.

    Raises:
        RunError: It is not there, or damaged.
    """
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        reason = f"expected JSON; it cannot be read ({error})"
        raise RunError(f"{path}: {reason}. Measure again with `tfcausal effects --overwrite`.") from None
    if not isinstance(values, dict):
        raise RunError(f"{path}: expected a JSON object. Measure again with `tfcausal effects --overwrite`.")
    return values
