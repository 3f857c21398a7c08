"""Sends an app's study and its jobs to MLflow, if that is wanted and installed."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from stability.config.schema import Tracking
from stability.core.errors import StabilityError
from stability.core.files import VERDICT

_NEEDED = ("filelock", "mlflow")


@dataclass(frozen=True)
class Sending:
    """Where an app's study is sent.

    Attributes:
        study: The study's folder. The store is `mlflow.db` next to it, unless `MLFLOW_TRACKING_URI` names another.
        wanted: Whether it is to be sent.
    """

    study: Path
    wanted: bool

    @classmethod
    def of_study(cls, study: Path, tracking: str) -> "Sending":
        """Read the setting of the callback.

        Raises:
            StabilityError: It is another word.
        """
        if tracking not in ("mlflow", "none"):
            raise StabilityError(f"hydra.callbacks.stability.tracking={tracking}: give mlflow or none.")
        return cls(study, tracking == "mlflow")

    @property
    def missing(self) -> list[str]:
        """The packages that sending needs and that are not installed; none if nothing is to be sent."""
        return [name for name in _NEEDED if self.wanted and find_spec(name) is None]

    @property
    def is_on(self) -> bool:
        """Whether the study is sent."""
        return self.wanted and not self.missing

    def open(self, factors: Mapping[str, Sequence[str]]) -> None:
        """Make the run of the study, or continue it. `factors`: {name: levels} of what varies in it."""
        if self.is_on:
            from stability.tracking.api import open_study

            open_study(self._settings, self.study, outputs=self.study.parent, factors=factors)

    def send(self, folder: Path) -> None:
        """Send a job that has its verdict, unless that was done."""
        if not self.is_on or not (folder / VERDICT).exists():
            return
        from stability.tracking.api import is_sent, open_tracker

        if not is_sent(self._settings, folder, outputs=self.study.parent):
            open_tracker(self._settings, folder, outputs=self.study.parent).finish()

    def send_rest(self, folders: Iterable[Path]) -> None:
        """Send what has not been sent of some jobs."""
        for folder in folders:
            self.send(folder)

    @property
    def _settings(self) -> Tracking:
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or self.study.name
        return Tracking(backend="mlflow", uri=None, experiment=experiment)
