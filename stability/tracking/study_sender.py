"""Sends the folder of a study as an MLflow run, which is the parent of its trials' runs."""

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, get_args
from urllib.parse import quote, urlencode

from stability.core.errors import StabilityError
from stability.core.files import CONFIG, ERROR, HYDRA_CONFIG, VERDICT
from stability.diagnosis.finding import Outcome
from stability.diagnosis.verdict import read_verdict
from stability.tracking.sender import NOTE, PARENT, WORKFLOW, OpenRun, Sender, modification_time, now_ms

if TYPE_CHECKING:
    from mlflow.entities import Run

_VIEW = "mlflow.sharedViewState."  # with an id behind it: the tag of an experiment that is one of its pages' "Views"
_USUAL_FACTORS = ("epsilon", "lr", "noise", "batch", "loss", "seed")  # columns of the view if no factor is known
_MOST_LEVELS = 12  # of a factor that are listed
_SORTED = {"orderByKey": "metrics.`validation/per`", "orderByAsc": "true"}


class StudySender(Sender):
    """Sends a study: its results and links to its trials, which are runs of their own.

    Use an object for one call, while you hold the lock of its folder.
    """

    def finish(
        self, attachments: Sequence[Path], note: str, factors: Mapping[str, Sequence[str]], *, stopped: bool
    ) -> None:
        """Send the results, and close the run.

        Args:
            attachments: Files that become artifacts.
            note: Markdown for the description.
            factors: What varies in the study: {short name: levels}. If it is empty, it is as it was.
            stopped: Whether Ctrl-C or SIGTERM ended the study.
        """
        self._state.note = note
        self.set_factors(factors)
        self._state.attachments = [os.path.relpath(path, self._folder) for path in attachments]
        self._close("KILLED" if stopped else self._final_status())

    def set_factors(self, factors: Mapping[str, Sequence[str]]) -> None:
        """Note what varies in the study, unless nothing is known of it."""
        if factors:
            self._state.factors = {name: [*levels] for name, levels in factors.items()}

    def abort(self) -> None:
        """Close the run of a study that Ctrl-C or SIGTERM ended, unless it is closed already."""
        if not self._state.finished:
            self._close("KILLED")

    def connect(self) -> str:
        """Open the run, make it if the store has none, and return its id. MLflow's errors are raised as they are."""
        return self._connect().id

    def _outputs(self) -> Path:
        return self._folder.resolve().parent

    def _tags(self, parent: str | None) -> dict[str, str]:
        """Also the levels of the factors. They are no parameters, since these cannot change when a study grows."""
        factors = {f"factor.{name}": _listed(levels) for name, levels in self._state.factors.items()}
        return super()._tags(parent) | factors

    def _start_time(self) -> int:
        return now_ms()

    def _final_status(self) -> str:
        if any(self._folder.glob(f"*/{ERROR}")):
            return "FAILED"
        begun = [each for each in self._folder.glob("*") if (each / CONFIG).exists() or (each / HYDRA_CONFIG).exists()]
        return "FINISHED" if begun and all((folder / VERDICT).exists() for folder in begun) else "KILLED"

    def _describe(self, run: OpenRun, found: "Run") -> None:
        """Send a view of the trials, and a description that links to it.

        Without a sorted view, MLflow's table hides runs below their parent, and its charts leave them out. The view has
        the format in which MLflow 3.17 saves views.
        """
        now = now_ms()
        name = f"{self._folder.name}: trials"
        # What is the same in all trials has no column, so that the outcomes are on the screen.
        parameters = self._state.factors or _USUAL_FACTORS
        columns = ["tags.`outcome`", "tags.`cause`", "metrics.`validation/per`", *(f"params.`{p}`" for p in parameters)]
        chosen = {"searchFilter": _children_of(run.id), **_SORTED, "selectedColumns": columns}
        view = {"name": name, "createdAt": now, "updatedAt": now, "state": json.dumps(chosen)}
        run.client.set_experiment_tag(found.info.experiment_id, _VIEW + run.id, json.dumps(view))
        run.client.set_tag(run.id, NOTE, self._description(run.id))

    def _send_all(self) -> None:
        from mlflow.entities import Metric

        run = self._connect()
        if self._state.status != "KILLED":  # the counts are logged once, when all trials have ended
            counts, last = self._outcome_counts(), max(map(modification_time, self._verdicts()), default=0)
            # Logged again under the same time, as after a kill just here, they are for MLflow the same points.
            metrics = [Metric(f"outcome/{outcome}", counts[outcome], last, 0) for outcome in get_args(Outcome)]
            run.client.log_batch(run.id, metrics)
        run.client.set_terminated(run.id, self._state.status, now_ms())
        for name in self._state.attachments:
            if (self._folder / name).exists():
                run.client.log_artifact(run.id, str(self._folder / name))
        self._state.finished = True
        self._save_state()

    def _verdicts(self) -> Iterator[Path]:
        return self._folder.glob(f"*/{VERDICT}")

    def _outcome_counts(self) -> Counter[str]:
        counts = Counter[str]()
        for path in self._verdicts():
            with suppress(OSError, StabilityError):  # the report lists verdicts that are damaged
                counts[read_verdict(path).outcome] += 1
        return counts

    def _description(self, run_id: str) -> str:
        """Links to the trials, and the note."""
        runs = self._state.page.partition("/runs/")[0] + f"/runs?{WORKFLOW}"
        links = [f"[all]({runs}&viewStateShareKey={run_id})"]
        for outcome, number in self._outcome_counts().most_common():
            query = {"searchFilter": f"{_children_of(run_id)} and tags.outcome = '{outcome}'", **_SORTED}
            links.append(f"[{number} {outcome}]({runs}&{urlencode(query, quote_via=quote)})")
        # The links come first, because MLflow shows only the beginning of a long description.
        return "\n\n".join(filter(None, (f"Trials: {', '.join(links)}.", self._note(self._state.note))))


def _children_of(run_id: str) -> str:
    """MLflow's filter for the runs with this parent."""
    return f"tags.{PARENT} = '{run_id}'"


def _listed(levels: Sequence[str]) -> str:
    """The levels of a factor, or of many the first and the last one: a search has as many as it has trials."""
    if len(levels) <= _MOST_LEVELS:
        return ", ".join(levels)
    return f"{levels[0]} … {levels[-1]} ({len(levels)} levels)"
