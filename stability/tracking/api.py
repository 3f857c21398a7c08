"""The interface of tracking: send a trial or a study to MLflow, copy a trial for TensorBoard or W&B, or neither.

The trial's folder is the source of truth, and the queue: a tracker sends what is in the folder and not yet in MLflow,
and `tracking.json` records what has been sent. So sending works the same during the training, after a kill and long
after, and every row is logged once. A store that does not answer never stops a training.

A study has a run too, the parent of its trials' runs, with a `tracking.json` in the study's folder. The processes that
train its trials find the parent there.
"""

import getpass
import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Protocol

from stability.config.schema import Tracking
from stability.core.checkout import git_commit
from stability.core.errors import StabilityError, write_error
from stability.core.extras import require
from stability.core.files import SIGNALS_FILE, TRACKING, config_of, short_path
from stability.tracking.state import State, read_state
from stability.tracking.store import (
    import_mlflow,
    innermost_reason,
    is_own_store,
    is_sqlite,
    mlflow_uri,
    quiet,
    resolve_uri,
    sqlite_path,
    uri_from_environment,
)

_COPIES = ("tensorboard", "wandb")

# The senders are imported late. They need packages that reading a run does without.


class Tracker(Protocol):
    """Sends one trial while it is trained, and closes its run at the end."""

    @property
    def where(self) -> str:
        """Where to look at the trial: a sentence, with the command to run if one is needed."""

    def update(self) -> None:
        """Send what is new in the folder, unless it was sent a moment ago. Call it after every block of steps."""

    def finish(self) -> None:
        """Send the rest, the verdict and the files, and close the run. A diverged trial is finished too."""

    def abort(self, status: Literal["FAILED", "KILLED"]) -> None:
        """Send the rest and close the run of a trial that an error or an interrupt ended."""


class _NoTracker:
    """The tracker of `tracking=none`."""

    where = "tracking=none: the trial is only in its folder."

    def update(self) -> None:
        pass

    def finish(self) -> None:
        pass

    def abort(self, status: Literal["FAILED", "KILLED"]) -> None:
        pass


def open_tracker(settings: Tracking, folder: Path, *, outputs: Path) -> Tracker:
    """Start to send a trial, or continue.

    The run has the folder's name, and the values in `config.yaml` as its parameters. A store that does not answer is
    a warning, not an error.

    Args:
        settings: Where to send it.
        folder: The trial's folder, with its `config.yaml`.
        outputs: The folder of all studies. Without `settings.uri`, the store is `mlflow.db` in it.

    Raises:
        StabilityError: A setting is wrong, or another process trains or sends the trial.
    """
    if settings.backend in _COPIES:
        _check_copies(settings)
        from stability.tracking.copies import CopyTracker

        return CopyTracker(settings, folder)
    state = _new_state(settings, folder, outputs)
    if state is None:
        return _NoTracker()
    from stability.tracking.trial_sender import TrialSender

    tracker = TrialSender(folder, state, system_metrics=settings.system_metrics)
    tracker.start()
    return tracker


def open_study(
    settings: Tracking, folder: Path, *, outputs: Path, factors: Mapping[str, Sequence[str]] = MappingProxyType({})
) -> None:
    """Make the run that is the parent of a study's trials, or continue it. Call it before the first trial.

    Any number of processes may have a study open at the same time, and any may be killed.

    Args:
        settings: Where to send it.
        folder: The study's folder, which holds the folders of its trials.
        outputs: The folder of all studies. Without `settings.uri`, the store is `mlflow.db` in it.
        factors: What varies in the study, as far as it is known: {short name: levels}.

    Raises:
        StabilityError: A setting is wrong, or the folder cannot be written.
    """
    state = _new_state(settings, folder, outputs)
    if state is None:
        return
    from stability.tracking.sender import lock_of
    from stability.tracking.study_sender import StudySender

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with lock_of(folder):
            study = StudySender(folder, state)
            study.set_factors(factors)
            try:
                study.start()
            except KeyboardInterrupt:
                study.abort()
                raise
    except OSError as error:
        raise write_error(folder, error) from error


def close_study(
    folder: Path,
    attachments: Sequence[Path],
    note: str,
    *,
    factors: Mapping[str, Sequence[str]] = MappingProxyType({}),
    stopped: bool = False,
) -> str:
    """Send the results of a study and close its run.

    The run ends as FINISHED if there are trials in `folder` and all have their verdict, as FAILED if a trial crashed,
    else as KILLED.

    Args:
        folder: The study's folder.
        attachments: Files that become artifacts of the run.
        note: Markdown for the run's description, which begins with links to the trials of each outcome.
        factors: What varies in the study: {short name: levels}. If it is empty, it is as it was.
        stopped: Whether Ctrl-C or SIGTERM ended the study. Then its run is KILLED, whatever is in the folder.

    Returns:
        Where to look at the study: a sentence.
    """
    state = read_state(folder)
    if state is None:
        return "tracking=none: the study is only in its folder."
    from stability.tracking.sender import lock_of
    from stability.tracking.study_sender import StudySender

    with lock_of(folder):
        study = StudySender(folder, state)
        study.finish(attachments, note, factors, stopped=stopped)
    return study.where


def abort_study(folder: Path) -> None:
    """Close the run of a study that Ctrl-C or SIGTERM ended, as KILLED, unless it is closed already.

    Args:
        folder: The study's folder.
    """
    state = read_state(folder)
    if state is None:
        return
    from stability.tracking.sender import lock_of
    from stability.tracking.study_sender import StudySender

    with lock_of(folder):
        StudySender(folder, state).abort()


def is_sent(settings: Tracking, folder: Path, *, outputs: Path) -> bool:
    """Return whether the run of a finished trial or study has all that is in its folder, and is closed as finished.

    No store is asked, and MLflow is not imported.
    """
    if settings.backend == "none":
        return True
    if settings.backend in _COPIES:
        from stability.tracking.copies import is_copied

        return is_copied(settings.backend, folder)
    state = read_state(folder)
    uri = resolve_uri(settings.uri, outputs)
    if state is None or not state.is_for(uri, settings.experiment):
        return False
    return state.finished and state.status == "FINISHED"


def find_trials_and_studies(folder: Path) -> list[Path]:
    """Return the folders of trials and of studies that were sent, at and below `folder`; a study before its trials.

    Raises:
        StabilityError: There are none.
    """
    marked = (path.parent for name in (TRACKING, SIGNALS_FILE) for path in folder.rglob(name))
    found = sorted({each for each in marked if config_of(each).exists() or (each / TRACKING).exists()})
    if not found:
        raise StabilityError(f"{folder} is not the folder of a trial or study, and holds none.")
    return found


def stores_to_ask_for(folder: Path, found: Sequence[Path]) -> list[str]:
    """Return the stores that folders name and that are no sqlite file above `folder`, where training makes it.

    Somebody else's folder may name any host, so its user has to say that it is the right one.

    Args:
        folder: The folder that the user named.
        found: The folders of trials and studies in it.
    """
    named = (read_state(each) for each in found)
    return sorted({state.uri for state in named if state is not None and not is_own_store(state.uri, folder)})


def send_missing(folder: Path, uri: str | None = None) -> str:
    """Send what has not been sent of one trial or study.

    Args:
        folder: The trial's or study's folder.
        uri: Another store than the one that the environment names, or else it was first sent to.

    Returns:
        Where to look at it: a sentence.

    Raises:
        StabilityError: No store is known, the store fails, or another process trains or sends the trial.
    """
    from stability.tracking.naming import read_plain_config
    from stability.tracking.sender import lock_of
    from stability.tracking.study_sender import StudySender
    from stability.tracking.trial_sender import TrialSender

    known = read_state(folder)
    is_named = uri is not None or uri_from_environment() is not None
    if known is not None:
        store = resolve_uri(uri if is_named else known.uri, folder)
        state = replace(known, uri=store, run_id=None, page="", parent=None, marks={}, finished=False)
    elif is_named:
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or str(read_plain_config(folder).get("study", "single"))
        state = State(resolve_uri(uri, folder), experiment, _tags(folder))
    else:
        raise StabilityError(f"{folder} was never sent to MLflow. Give a store with --uri.")
    is_trial = config_of(folder).exists()
    with nullcontext() if is_trial else lock_of(folder):
        sender = TrialSender(folder, state) if is_trial else StudySender(folder, state)
        try:
            sender.send_rest()
        except Exception as error:  # from MLflow, its database or the network; the user can repair it or wait
            raise StabilityError(f"Cannot send {folder} to {state.uri}: {innermost_reason(error)}.") from error
    return sender.where


def read_run(run_id: str, uri: str | None) -> tuple[str, list[tuple[str, int, float]]]:
    """Read all metrics of an MLflow run, whatever program logged it.

    Args:
        run_id: The run's id.
        uri: Its store; None for the one that the environment names, or else `outputs/mlflow.db`.

    Returns:
        The run's name, and (metric, step, value) in the order of logging.

    Raises:
        StabilityError: MLflow is not installed, or the run cannot be read.
    """
    uri = resolve_uri(uri, Path("outputs"))
    if is_sqlite(uri) and not sqlite_path(uri).exists():
        raise StabilityError(f"There is no MLflow store at {short_path(sqlite_path(uri))}. Give the run's with --uri.")
    import_mlflow()
    from mlflow import MlflowClient

    try:
        with quiet():
            client = MlflowClient(tracking_uri=mlflow_uri(uri))
            run = client.get_run(run_id)
            logged = [m for name in run.data.metrics for m in client.get_metric_history(run_id, name)]
    except Exception as error:  # from MLflow, its database or the network
        raise StabilityError(f"Cannot read run {run_id} from {uri}: {innermost_reason(error)}.") from error
    logged.sort(key=lambda metric: (metric.timestamp, metric.step))
    return run.info.run_name or run_id, [(metric.key, metric.step, metric.value) for metric in logged]


def _new_state(settings: Tracking, folder: Path, outputs: Path) -> State | None:
    """Check the settings and return the state of a folder that was never sent; None if nothing is sent to a store."""
    match settings.backend:
        case "none":
            return None
        case "tensorboard" | "wandb":
            _check_copies(settings)
            return None
        case "mlflow":
            if not settings.experiment.strip():
                raise StabilityError("tracking.experiment is empty: give a name, or unset MLFLOW_EXPERIMENT_NAME.")
            tags = _tags(folder, git_commit(), settings.note) | settings.tags
            return State(resolve_uri(settings.uri, outputs), settings.experiment, tags)
    raise StabilityError(f"tracking.backend={settings.backend}: choose mlflow, tensorboard, wandb or none.")


def _check_copies(settings: Tracking) -> None:
    """Raise StabilityError if a trial cannot be copied into the files of another program."""
    require("tensorboard" if settings.backend == "tensorboard" else "wandb")
    if settings.uri is not None:
        raise StabilityError(f"tracking.uri is for tracking=mlflow; tracking={settings.backend} writes into folders.")


def _tags(folder: Path, commit: str | None = None, note: str | None = None) -> dict[str, str]:
    """The tags of a run that say who made it, with what, and where its folder is."""
    tags = {
        "mlflow.user": os.environ.get("MLFLOW_TRACKING_USERNAME") or _user(),
        "mlflow.source.name": "stability.train",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": commit,
        "mlflow.note.content": note,
        "folder": f"{socket.gethostname()}:{folder.resolve()}",
    }
    return {name: value for name, value in tags.items() if value}


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container, a user may have no name
        return None
