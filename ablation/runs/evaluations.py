"""Records of evaluations: ``evaluations/`` and ``result.json`` of a run directory."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablation.errors import InputError
from ablation.output import warn
from ablation.runs.files import atomic_write_bytes, atomic_write_text, json_text

if TYPE_CHECKING:
    import pandas as pd

ENTRY_FIELDS = frozenset(
    ("checkpoint", "weights", "metric", "split", "value", "unit", "n", "params")
)
"""Fields of every entry of a result."""

TRAINING = "training"
"""In place of an ``eval_id``: what training recorded in the epoch of the weights."""


class EvaluationRecords:
    """Keep and read the evaluations of a run.

    Attributes:
        path: the run's directory.
        train_id: the run's identity.
    """

    path: Path
    train_id: str

    @property
    def result_path(self) -> Path:
        """All entries of the run."""
        return self.path / "result.json"

    @property
    def evaluations(self) -> Path:
        """Folder with two files per evaluation."""
        return self.path / "evaluations"

    def add_evaluation(
        self,
        checkpoint: str,
        eval_id: str,
        entries: Sequence[Mapping[str, Any]],
        examples: pd.DataFrame,
        flags: Sequence[str] = (),
        meta: Mapping[str, Any] | None = None,
        checks: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Keep one evaluation and rebuild ``result.json``. One that is there already stays.

        Args:
            checkpoint: the weights that were attacked.
            eval_id: hash of the evaluation, or ``TRAINING``.
            entries: numbers; each has the fields of ``ENTRY_FIELDS``.
            examples: one row per example.
            flags: warnings about the evaluation.
            meta: plain data; ``scale`` and ``deviations`` reach ``result.json``.
            checks: of the evaluation, as plain data.

        Raises:
            InputError: the disk is full or cannot be written; earlier results are untouched.
            ValueError: an entry lacks a field.
        """
        for entry in entries:
            if missing := sorted(ENTRY_FIELDS - entry.keys()):
                raise ValueError(f"entry {dict(entry)} lacks {', '.join(missing)}")
        if not self.has_evaluation(checkpoint, eval_id):
            record = {
                "checkpoint": checkpoint,
                "eval_id": eval_id,
                "entries": [dict(entry) for entry in entries],
                "flags": list(flags),
                "checks": [dict(check) for check in checks],
                "meta": dict(meta or {}),
            }
            buffer = BytesIO()
            examples.to_parquet(buffer, index=False)
            path = self._evaluation_path(checkpoint, eval_id)
            # The JSON last: it says that the evaluation is complete.
            atomic_write_bytes(path.with_name(f"{path.stem}.parquet"), buffer.getvalue())
            atomic_write_text(path, json_text(record))
        self._rebuild_result()

    def add_recorded(
        self,
        checkpoint: str,
        entries: Sequence[Mapping[str, Any]],
        columns: Mapping[str, Any],
        flags: Sequence[str] = (),
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        """Keep what training recorded in the epoch of some weights, as the evaluation ``TRAINING``.

        Args:
            checkpoint: the weights.
            entries: see ``add_evaluation``.
            columns: arrays with one entry per image, ``index`` among them.
            flags: what every number of the run must say.
            meta: see ``add_evaluation``.

        Raises:
            InputError: the disk is full or cannot be written; earlier results are untouched.
        """
        import pandas as pd  # slow to import, and most runs record nothing

        self.add_evaluation(checkpoint, TRAINING, entries, pd.DataFrame(columns), flags, meta)

    def has_evaluation(self, checkpoint: str, eval_id: str) -> bool:
        """Say whether this evaluation is complete and on disk."""
        path = self._evaluation_path(checkpoint, eval_id)
        return path.is_file() and path.with_name(f"{path.stem}.parquet").is_file()

    def each_evaluation(
        self,
    ) -> Iterator[tuple[dict[str, Any], Callable[[list[str]], pd.DataFrame]]]:
        """Yield each complete evaluation: its record, and what reads columns of its examples.

        Raises:
            InputError: an evaluation's file is damaged.
        """
        for path in sorted(self.evaluations.glob("*.json")):
            table = path.with_suffix(".parquet")
            if table.is_file():
                yield _record(path), partial(_columns, table)

    def result(self, only: Collection[tuple[str, str]] | None = None) -> dict[str, Any] | None:
        """All entries of the run, put together from its evaluations; ``None`` if it has none.

        ``checks`` is missing where no evaluation has any: those before there were checks.

        Args:
            only: checkpoint and ``eval_id`` of the evaluations to take; ``None`` takes all.

        Raises:
            InputError: an evaluation's file is damaged.
        """
        paths = sorted(self.evaluations.glob("*.json"))
        if only is not None:
            chosen = {self._evaluation_path(*key) for key in only}
            paths = [path for path in paths if path in chosen]
        records = [_record(path) for path in paths]
        if not records:
            return None
        metas = [record["meta"] for record in records]
        scales = {str(meta["scale"]) for meta in metas if "scale" in meta}
        checks = [check for record in records for check in record.get("checks", ())]
        return {
            "run": self.path.name,
            "train_id": self.train_id,
            "scale": "smoke" if "smoke" in scales else next(iter(scales), None),
            "flags": _unique(record["flags"] for record in records),
            "deviations": _unique(meta.get("deviations", ()) for meta in metas),
            **({"checks": checks} if checks else {}),
            "entries": [entry for record in records for entry in record["entries"]],
        }

    def _evaluation_path(self, checkpoint: str, eval_id: str) -> Path:
        return self.evaluations / f"{checkpoint}-{eval_id}.json"

    def _rebuild_result(self) -> None:
        result = self.result()
        if result is None:
            return
        text = json_text(result)
        if self.result_path.is_file() and not _is_json(self.result_path):
            warn(f"warning: {self.result_path} was damaged; it is written anew from evaluations/")
        if not self.result_path.is_file() or self.result_path.read_bytes() != text.encode():
            atomic_write_text(self.result_path, text)


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return False
    return True


def _columns(table: Path, names: list[str]) -> pd.DataFrame:
    import pandas as pd  # most evaluations do without

    return pd.read_parquet(table, columns=names)


def _record(path: Path) -> dict[str, Any]:
    """Read an evaluation's file.

    Raises:
        InputError: it is damaged, or is no evaluation.
    """
    try:
        record = json.loads(path.read_bytes())
        whole = (
            isinstance(record["meta"], dict)
            and isinstance(record["flags"], list)
            and all(entry.keys() >= ENTRY_FIELDS for entry in record["entries"])
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise InputError(f"{path} is damaged: move it away and evaluate again")
    return dict(record)


def _unique(lists: Iterator[Sequence[str]]) -> list[str]:
    """All entries in order, each once."""
    return list(dict.fromkeys(entry for entries in lists for entry in entries))
