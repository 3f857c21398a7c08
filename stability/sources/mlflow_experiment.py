"""The runs of an MLflow experiment, whatever program logged them. Trials of ours are read back as they were."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, get_args

from stability.analysis.trial import Record, Trial
from stability.analysis.trials import NoTrial, trial_of_ours
from stability.config.names import dotted_name
from stability.core.errors import StabilityError
from stability.diagnosis.finding import Outcome
from stability.diagnosis.readers import Recording, read_metrics
from stability.diagnosis.readers.names import naming
from stability.diagnosis.responses import measured
from stability.diagnosis.verdict import Verdict
from stability.sources.task import Run, Task
from stability.tracking.experiment import StoredRun, history_of, runs_of
from stability.tracking.sender import NOTE
from stability.tracking.trial_sender import RESPONSES

PREFIX = "mlflow:"

_OURS = {"study", "seed", "stop_on"}  # parameters that together only our trials have


def tasks(experiment: str, uri: str | None, names: Mapping[str, str]) -> list[Task]:
    """Return a task for each run of an experiment. A run that is only the parent of others is none.

    Raises:
        StabilityError: There is no such store or experiment, or it has no runs.
    """
    store, runs = runs_of(experiment, uri)
    if not runs:
        raise StabilityError(f"{PREFIX}{experiment}: the experiment has no runs.")
    parents = {run.parent for run in runs}
    return [_task(run, store, names) for run in runs if run.id not in parents or run.params]


def _task(run: StoredRun, store: str, names: Mapping[str, str]) -> Task:
    found = Run(run.name, run.params, partial(_read, run.id, run.metrics, store, names), page=run.page)
    return Task(found.task.place, partial(_trial_of_ours, run, found)) if run.params.keys() >= _OURS else found.task


def _read(run_id: str, metrics: Sequence[str], store: str, names: Mapping[str, str]) -> Recording:
    with naming(names):
        return read_metrics("it", history_of(run_id, metrics, store))  # as messages call it: the same for all such runs


def _trial_of_ours(run: StoredRun, found: Run) -> Trial:
    """Read a trial of ours, whose verdict and responses are in its tags."""
    outcome: Outcome | None = next((known for known in get_args(Outcome) if known == run.tags.get("outcome")), None)
    if outcome is None:
        raise StabilityError("no verdict: it crashed, was stopped or is being trained")
    recording = found.read()
    settings = {dotted_name(name): _value(text) for name, text in run.params.items()}
    steps, cause = settings.get("steps"), run.tags.get("cause")
    try:
        responses = (
            json.loads(run.tags[RESPONSES])
            if RESPONSES in run.tags
            else measured(
                recording.signals,
                recording.validation,
                outcome=outcome,
                cause=cause,
                budget=steps if isinstance(steps, int) else None,
            )
        )
        where = {"metric": recording.metric, "page": run.page, "read": partial(_record, outcome, run.tags, found.read)}
        return trial_of_ours(run.name, settings, {*recording.signals.names}, responses, **where)
    except NoTrial as reason:
        raise StabilityError(str(reason)) from None
    except (ValueError, TypeError):
        raise StabilityError(f"its tag {RESPONSES} is from another version of the program") from None


def _record(outcome: Outcome, tags: Mapping[str, str], read: Callable[[], Recording]) -> Record:
    """What was recorded, with the verdict as far as it is in the tags."""
    recording = read()
    onset, detected = (int(tags[name]) if name in tags else None for name in ("onset_step", "detected_step"))
    verdict = Verdict(outcome, tags.get("cause"), onset, detected, {}, tags.get(NOTE, ""))
    return Record(recording.signals, recording.validation, verdict)


def _value(text: str) -> Any:
    """The value of a setting that was sent as JSON, or as it is if it is a text."""
    try:
        return json.loads(text)
    except ValueError:
        return text
