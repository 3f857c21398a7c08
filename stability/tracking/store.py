"""MLflow stores: their addresses, opening them, and leaving them alone for a while after a failure.

A store is a server or a sqlite file. Nothing here imports MLflow before it is needed: the import takes seconds.
"""

import logging
import math
import os
import re
import sqlite3
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from stability.core.errors import StabilityError
from stability.core.extras import require
from stability.core.files import short_path, write_atomically
from stability.core.passwords import refuse_password
from stability.core.stopping import time_limit

if TYPE_CHECKING:
    from mlflow import MlflowClient

# MLflow reads these. A value that the user has set stays. By default MLflow waits a quarter of an hour for a server.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
}
_URI_VARIABLE = "MLFLOW_TRACKING_URI"
_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}  # else its page shows chat traces, not runs

# What the errors of SQLite say about a file that is no database, or lacks a part of MLflow's tables.
_DAMAGE = ("not a database", "malformed", "no such table", "no such column", "already exists", "duplicate column")

_log = logging.getLogger(__name__)

_failures: dict[str, tuple[float, float]] = {}  # by URI: when the store last failed (time.monotonic), after how many s
_logged: set[tuple[str, str]] = set()  # URI and reason of each failure that was logged


def uri_from_environment() -> str | None:
    """Return the store that the user names in the environment, as for MLflow's own commands; None if there is none."""
    return os.environ.get(_URI_VARIABLE) or None


def resolve_uri(uri: str | None, outputs: Path, *, setting: str = "tracking.uri") -> str:
    """Check the address of a store and complete it.

    Args:
        uri: The value of `setting`; None for the store that the environment names, or `mlflow.db` in `outputs`.
        outputs: The folder of all studies.
        setting: How the user gives the address, for messages.

    Returns:
        The address of a server, or a sqlite address with an absolute path.

    Raises:
        StabilityError: It is another kind of address, or holds a password.
    """
    if uri is None:
        setting, uri = _URI_VARIABLE, uri_from_environment()
    if uri is None:
        return f"sqlite:///{outputs.resolve() / 'mlflow.db'}"
    refuse_password(setting, uri)
    if uri.startswith("sqlite:///") and uri != "sqlite:///":
        return f"sqlite:///{sqlite_path(uri).resolve()}"
    try:
        parts = urlsplit(uri)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return uri.rstrip("/")
    except ValueError:
        pass  # the message is below
    raise StabilityError(
        f"{setting}={uri} is not a store. Give http://HOST:PORT, https://HOST, sqlite:///PATH, or "
        f"{'unset it' if setting == _URI_VARIABLE else 'null'} for {outputs / 'mlflow.db'}."
    )


def is_sqlite(uri: str) -> bool:
    """Return whether a store is a sqlite file."""
    return uri.startswith("sqlite")


def sqlite_path(uri: str) -> Path:
    """Return the file of a sqlite store."""
    return Path(uri.removeprefix("sqlite:///"))


def is_own_store(uri: str, folder: Path) -> bool:
    """Return whether a store is a sqlite file above `folder`, where training makes it if no other store is given."""
    return is_sqlite(uri) and sqlite_path(uri).parent in folder.resolve().parents


def mlflow_uri(uri: str) -> str:
    """Return the address of a store as MLflow reads it: in a sqlite address it decodes `%20`, and `?` ends the path.

    Only what has to be is encoded, because MLflow makes an empty folder of the encoded name.
    """
    return re.sub(r"%(?=[0-9A-Fa-f]{2})", "%25", uri).replace("?", "%3F") if is_sqlite(uri) else uri


def open_store(uri: str, experiment: str) -> tuple["MlflowClient", str]:
    """Open a store, and make it and the experiment where they are missing.

    Returns:
        A client for the store, and the id of the experiment.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    if not is_sqlite(uri):
        client = MlflowClient(tracking_uri=uri)
        try:
            return client, _experiment_id(client, experiment, None)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        return client, _experiment_id(client, experiment, None)  # another process made it in the meantime
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401 - takes a second: better before the lock than under it
    from filelock import FileLock

    database = sqlite_path(uri)
    artifacts = (database.parent / "mlflow-artifacts").as_uri()
    database.parent.mkdir(parents=True, exist_ok=True)
    # One process at a time opens a store and makes its experiment: MLflow's crash if two make the same one.
    with FileLock(f"{database}.lock"):
        if not database.exists() or (database.is_file() and not database.stat().st_size):
            _make_database(database, artifacts)
        try:
            # A file that is no database, or cannot be written, fails here at once. MLflow would retry for two minutes.
            with closing(sqlite3.connect(database)) as connection:
                connection.execute("BEGIN IMMEDIATE")
            client = MlflowClient(tracking_uri=mlflow_uri(uri))
            return client, _experiment_id(client, experiment, artifacts)
        except Exception as error:
            reason = innermost_reason(error)
            if not any(words in reason for words in _DAMAGE):
                raise
            send = f"python -m stability.send {short_path(database.parent)} --uri sqlite:///{short_path(database)}"
            raise StabilityError(
                f"{short_path(database)} is damaged or incomplete ({reason}). Move it away: the next command makes a "
                f"new one, and `{send}` sends it all that the folders hold"
            ) from None


def _make_database(database: Path, artifacts: str) -> None:
    """Make an empty store. After a kill or on a full disk there is none, rather than one without some of its tables."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with TemporaryDirectory() as folder:  # on a local disk, where the many small writes are fast
        made = Path(folder, database.name)
        SqlAlchemyStore(f"sqlite:///{made}", artifacts).engine.dispose()  # type: ignore[no-untyped-call]
        write_atomically(database, made.read_bytes())


def _experiment_id(client: "MlflowClient", name: str, artifacts: str | None) -> str:
    found = client.get_experiment_by_name(name)
    return found.experiment_id if found else client.create_experiment(name, artifacts, _EXPERIMENT_TAGS)


def attempt(
    uri: str,
    work: Callable[[], object],
    *,
    rest: float,
    hint: Callable[[], str],
    limit: float,
    after_signal: float = 0,
) -> bool:
    """Do work on a store, unless the store failed a short time ago. A failure is logged once; it is never raised.

    A store that is down may keep the training waiting until a timeout, at every attempt. So a store that has failed is
    left alone for `rest` times as long as the failure took, by all trials of this process together: training then
    loses at most one part in `rest` of its time to it.

    Args:
        uri: The store.
        work: What to do.
        rest: How long the store is left alone after a failure, as a multiple of the time that the failure took.
        hint: Returns what the user can do about a failure, for the warning.
        limit: After so many seconds the work has failed. A server may answer so slowly that no timeout of MLflow's ends
            the waiting.
        after_signal: The seconds that are left when Ctrl-C or SIGTERM comes.

    Returns:
        Whether the work was done.
    """
    begun = time.monotonic()
    failed, waited = _failures.get(uri, (-math.inf, 0.0))
    if begun - failed < rest * waited:
        return False
    try:
        with quiet(), time_limit(limit, after_signal=after_signal):
            work()
    except InterruptedError:
        return False
    except Exception as error:  # from MLflow, its database, the network or the disk
        reason = innermost_reason(error)
        if (uri, reason) not in _logged:
            _log.warning("Cannot send to MLflow at %s: %s. The training goes on. %s", uri, reason, hint())
        _logged.add((uri, reason))
        _failures[uri] = time.monotonic(), time.monotonic() - begun
        return False
    _failures.pop(uri, None)
    return True


def forget_failures() -> None:
    """Forget which stores failed and what was logged about them."""
    _failures.clear()
    _logged.clear()


def import_mlflow() -> None:
    """Import MLflow with settings that keep it quiet and make it give up soon. It reads them when it is imported.

    Raises:
        StabilityError: MLflow is not installed.
    """
    require("train", "mlflow")
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with quiet():
        import mlflow  # noqa: F401

    for name in ("mlflow", "alembic", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.ERROR)


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the warnings that MLflow and its dependencies give about each other."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def innermost_reason(error: Exception) -> str:
    """Return the innermost cause of an error on one line. MLflow and the libraries below it wrap errors many times."""
    inner: BaseException = error
    while cause := inner.__cause__ or (None if inner.__suppress_context__ else inner.__context__):
        inner = cause
    return (" ".join(str(inner).split()) or type(inner).__name__).rstrip(".")
