"""Trials that grow by hand, and what MLflow holds of them."""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs

import numpy as np
from numpy.typing import NDArray

from stability.config.schema import Tracking
from stability.tracking import api, trial_sender
from stability.tracking.api import Tracker
from tests.support.tables import append_rows

PARENT = "mlflow.parentRunId"
NAMES = ("loss", "lr", "epsilon_dominance")


@dataclass
class StoredRun:
    """A run in MLflow. `metrics` has the (step, value) pairs of each name, in the order of the steps."""

    id: str
    name: str
    status: str
    params: dict[str, str]
    tags: dict[str, str]
    metrics: dict[str, list[tuple[int, float]]]
    artifacts: set[str]
    datasets: tuple[tuple[str, str], ...]  # (name, digest)

    def steps(self, name: str) -> list[int]:
        return [step for step, _ in self.metrics.get(name, [])]


def read_runs(uri: str, experiment: str = "study") -> list[StoredRun]:
    """The runs of an experiment, the newest first."""
    from mlflow import MlflowClient

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client = MlflowClient(tracking_uri=uri)
        found = client.get_experiment_by_name(experiment)
        assert found is not None
        seen = []
        for run in client.search_runs([found.experiment_id]):
            history = {
                name: sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, name))
                for name in run.data.metrics
            }
            artifacts = {file.path for file in client.list_artifacts(run.info.run_id)}
            info = run.info
            seen.append(
                StoredRun(
                    info.run_id,
                    info.run_name,
                    info.status,
                    run.data.params,
                    run.data.tags,
                    history,
                    artifacts,
                    tuple(
                        (each.dataset.name, each.dataset.digest)
                        for each in (run.inputs.dataset_inputs if run.inputs else ())
                    ),
                )
            )
        return seen


def study_and_trials(uri: str) -> tuple[StoredRun, list[StoredRun]]:
    """Return the run of the only study, and the runs of its trials, which are all others."""
    runs = read_runs(uri)
    (parent,) = (run for run in runs if PARENT not in run.tags)
    children = [run for run in runs if run.tags.get(PARENT) == parent.id]
    assert len(children) == len(runs) - 1
    return parent, children


def columns_of_views(uri: str, experiment: str = "study") -> list[list[str]]:
    """Return the columns of each saved view of an experiment."""
    from mlflow import MlflowClient

    found = MlflowClient(tracking_uri=uri).get_experiment_by_name(experiment)
    assert found is not None
    views = [value for name, value in found.tags.items() if name.startswith("mlflow.sharedViewState.")]
    return [json.loads(json.loads(view)["state"])["selectedColumns"] for view in views]


def names_behind(link: str, uri: str) -> list[str]:
    """Return the names of the runs in the table that this link opens, in the order of the table."""
    from mlflow import MlflowClient

    experiment = link.split("/")[2]
    query = {name: values[0] for name, values in parse_qs(link.partition("?")[2]).items()}
    client = MlflowClient(tracking_uri=uri)
    if view := query.get("viewStateShareKey"):
        saved = json.loads(client.get_experiment(experiment).tags[f"mlflow.sharedViewState.{view}"])
        assert saved["name"] == "sweep: trials"
        query = json.loads(saved["state"])
    order = [f"{query['orderByKey']} {'ASC' if query['orderByAsc'] == 'true' else 'DESC'}"]
    return [run.info.run_name or "" for run in client.search_runs([experiment], query["searchFilter"], order_by=order)]


def store_uri(outputs: Path) -> str:
    return f"sqlite:///{outputs / 'mlflow.db'}"


def make_trial(folder: Path, steps: int = 100) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(
        f"optimizer:\n  epsilon: 1.0e-08\n  clip_norm: null\n  fused: true\nsteps: {steps}\nstudy: study\n"
        "data:\n  sessions: [a, b]\n  path: /data\ntracking: {backend: mlflow}\noutputs: outputs\n"
    )
    return folder


def signal_values(rows: int) -> NDArray[np.float32]:
    x = np.arange(rows)
    return np.stack([300 / (1 + x), np.full(rows, 0.005), x / 7], axis=1).astype(np.float32)


def add_rows(folder: Path, first: int, stop: int) -> None:
    append_rows(folder / "signals.csv", NAMES, range(first, stop), signal_values(stop)[first:])


def add_validation(folder: Path, step: int, per: float) -> None:
    append_rows(folder / "validation.csv", ("per", "loss"), [step], np.array([[per, 9]], np.float32))


def write_verdict(folder: Path) -> None:
    verdict = {
        "outcome": "exploded",
        "cause": "learning_rate",
        "onset_step": 0,
        "detected_step": None,
        "advice": "Lower it.",
    }
    (folder / "verdict.json").write_text(json.dumps(verdict))
    (folder / "run.png").write_bytes(b"\x89PNG")


def open_tracker(folder: Path, outputs: Path, uri: str | None = None) -> Tracker:
    return api.open_tracker(Tracking("mlflow", uri, "study"), folder, outputs=outputs)


def open_study(folder: Path, outputs: Path) -> None:
    api.open_study(Tracking("mlflow", None, "study"), folder, outputs=outputs)


def be_impatient() -> None:
    """Send at every update, in this process."""
    trial_sender.SHORTEST_PAUSE = trial_sender.LONGEST_PAUSE = 0.0
