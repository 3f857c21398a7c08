"""Reads the runs of an MLflow experiment, whatever program logged them.

A store in a sqlite file is read as the database that it is: MLflow's own functions take a minute for 10,000 runs.
"""

import math
import sqlite3
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from stability.core.errors import StabilityError
from stability.core.files import short_path
from stability.core.text import first_of
from stability.tracking.store import (
    import_mlflow,
    innermost_reason,
    is_sqlite,
    mlflow_uri,
    quiet,
    resolve_uri,
    sqlite_path,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

LOCAL_PAGE = "http://127.0.0.1:5000"  # where `mlflow ui` shows a store in a file
_IN_ORDER = "attributes.start_time ASC"
_PAGE_SIZE = 1000  # runs that a server sends at once
_LARGEST = sys.float_info.max  # what MLflow makes of inf


@dataclass(frozen=True)
class StoredRun:
    """A run in MLflow.

    Attributes:
        id: Its id.
        name: Its name.
        status: RUNNING, FINISHED, FAILED, KILLED or SCHEDULED.
        parent: The id of its parent; empty if it has none.
        params: Its parameters, as text.
        tags: Its tags.
        metrics: The names of its metrics.
        page: The address of its page.
    """

    id: str
    name: str
    status: str
    parent: str
    params: dict[str, str]
    tags: dict[str, str]
    metrics: tuple[str, ...]
    page: str


def runs_of(experiment: str, uri: str | None) -> tuple[str, list[StoredRun]]:
    """Read the runs of an experiment that are not deleted, in the order in which they were started.

    Args:
        experiment: Its name.
        uri: Its store; None for the one that the environment names, or else `outputs/mlflow.db`.

    Returns:
        The address of the store, for `history_of`, and the runs.

    Raises:
        StabilityError: There is no such store or experiment, or it cannot be read.
    """
    uri = resolve_uri(uri, Path("outputs"), setting="--uri")
    if is_sqlite(uri):
        if not sqlite_path(uri).exists():
            raise StabilityError(f"There is no MLflow store at {short_path(sqlite_path(uri))}. Give it with --uri.")
        return uri, _runs_in_file(sqlite_path(uri), experiment)
    return uri, _runs_on_server(uri, experiment)


def history_of(run_id: str, metrics: Sequence[str], uri: str) -> list[tuple[str, int, float]]:
    """Read the metrics of a run: (metric, step, value) in the order of logging.

    Args:
        run_id: Its id.
        metrics: The names of its metrics. A server is asked for each.
        uri: The address of the store.

    Raises:
        StabilityError: They cannot be read.
    """
    if not is_sqlite(uri):
        with _failing(f"run {run_id}", uri), quiet():
            client = _client(uri)
            logged = [m for name in metrics for m in client.get_metric_history(run_id, name)]
            logged.sort(key=lambda metric: (metric.timestamp, metric.step))
            return [(metric.key, metric.step, _value(metric.value)) for metric in logged]
    with _failing(f"run {run_id}", uri):
        rows = _database(sqlite_path(uri)).execute(
            "SELECT key, step, value, is_nan FROM metrics WHERE run_uuid = ? ORDER BY timestamp, step", [run_id]
        )
        return [(key, step, math.nan if is_nan else _value(value)) for key, step, value, is_nan in rows]


def _value(value: float) -> float:
    return math.copysign(math.inf, value) if abs(value) >= _LARGEST else value


def _runs_in_file(path: Path, experiment: str) -> list[StoredRun]:
    with _failing(f"experiment {experiment}", f"sqlite:///{path}"), closing(_connect(path)) as database:
        experiments = dict(
            database.execute("SELECT name, experiment_id FROM experiments WHERE lifecycle_stage = 'active'").fetchall()
        )
        if experiment not in experiments:
            raise _no_experiment(experiment, [*experiments])
        where = "WHERE r.experiment_id = ? AND r.lifecycle_stage = 'active'"
        rows = database.execute(
            f"SELECT run_uuid, name, status FROM runs r {where} ORDER BY start_time, run_uuid",
            [experiments[experiment]],
        ).fetchall()
        pairs: dict[str, dict[str, dict[str, str]]] = {"params": {}, "tags": {}, "latest_metrics": {}}
        for table, found in pairs.items():
            for run_id, key, value in database.execute(
                f"SELECT run_uuid, key, value FROM {table} JOIN runs r USING (run_uuid) {where}",
                [experiments[experiment]],
            ):
                found.setdefault(run_id, {})[key] = value
    return [
        _run(run_id, name, status, pairs["params"].get(run_id, {}), pairs["tags"].get(run_id, {}),
             pairs["latest_metrics"].get(run_id, {}),
             f"{LOCAL_PAGE}/#/experiments/{experiments[experiment]}/runs/{run_id}")
        for run_id, name, status in rows
    ]  # fmt: skip


def _runs_on_server(uri: str, experiment: str) -> list[StoredRun]:
    client = _client(uri)
    with _failing(f"experiment {experiment}", uri), quiet():
        known = client.get_experiment_by_name(experiment)
        if known is None:
            raise _no_experiment(experiment, [found.name for found in client.search_experiments()])
        page = client.search_runs([known.experiment_id], max_results=_PAGE_SIZE, order_by=[_IN_ORDER])
        found = [*page]
        while token := page.token:
            page = client.search_runs(
                [known.experiment_id], max_results=_PAGE_SIZE, order_by=[_IN_ORDER], page_token=token
            )
            found += page
    address = f"{uri}/#/experiments/{quote(known.experiment_id)}/runs/"
    return [
        _run(run.info.run_id, run.info.run_name, run.info.status, run.data.params, run.data.tags, run.data.metrics,
             address + run.info.run_id)
        for run in found
    ]  # fmt: skip


def _run(
    run_id: str,
    name: str | None,
    status: str,
    params: dict[str, str],
    tags: dict[str, str],
    metrics: Iterable[str],
    page: str,
) -> StoredRun:
    known = name or tags.get("mlflow.runName") or run_id
    return StoredRun(run_id, known, status, tags.get("mlflow.parentRunId", ""), params, tags, tuple(metrics), page)


def _no_experiment(experiment: str, names: list[str]) -> StabilityError:
    near = get_close_matches(experiment, names, 1)
    text = f"the nearest is {near[0]}" if near else f"there are {first_of(sorted(names), 10)}"
    return StabilityError(f"mlflow:{experiment}: there is no such experiment; {text}.")


@contextmanager
def _failing(what: str, uri: str) -> Iterator[None]:
    """Explain an error of MLflow's, of its database or of the network."""
    try:
        yield
    except StabilityError:
        raise
    except Exception as error:
        raise StabilityError(f"Cannot read {what} from {uri}: {innermost_reason(error)}.") from error


def _client(uri: str) -> "MlflowClient":
    import_mlflow()
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=mlflow_uri(uri))


@lru_cache(maxsize=4)
def _database(path: Path) -> sqlite3.Connection:
    return _connect(path)


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)
