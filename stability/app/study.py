"""A sweep of an app as a study: what is done before its first job, and after its last."""

from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from stability.analysis.settings import find_seed
from stability.app.ending import read_returned
from stability.app.jobs import AppJob, Jobs, fix_folder, is_dated
from stability.app.sending import Sending
from stability.config.hydra import explain_error
from stability.core.errors import StabilityError
from stability.core.extras import install_command
from stability.core.files import VERDICT, short_path
from stability.core.text import counted, first_of, listed
from stability.sweeps.cells import Cells
from stability.sweeps.closing import list_missing, report_study
from stability.sweeps.hydra_internals import BasicSweeper
from stability.sweeps.jobs import InvalidJob, describe_job, grid_jobs, list_invalid
from stability.sweeps.listing import print_cells
from stability.sweeps.progress import SweepProgress

_FOR_REPORT = ("jinja2", "markupsafe")
_NAMED = 3  # jobs without a verdict that are named


@dataclass(frozen=True)
class AppCells(Cells):
    """The jobs of a grid sweep of an app."""

    @cached_property
    def seed(self) -> str | None:
        """The dotted name of the setting that is the seed; None if none is known as one."""
        return find_seed([trial.settings for trial in self.trials])


class AppStudy:
    """A sweep of an app.

    Args:
        config: What Hydra composed for the sweep.
        claims: The claims to rule on; None for no claims.
        tracking: `mlflow` or `none`.
    """

    def __init__(self, config: DictConfig, claims: str | None, tracking: str) -> None:
        fix_folder(config)
        self._config, self._claims = config, claims
        self.folder = Path(config.hydra.sweep.dir)
        self.jobs = Jobs(config)
        self._sending = Sending.of_study(self.folder, tracking)
        self._plan = self._make_plan()
        self._progress: SweepProgress | None = None

    def show(self) -> None:
        """Print the jobs of the sweep and which of them are finished."""
        if self._plan is None:
            finished = sum(read_returned(folder) is not None for folder in self.folder.glob("*"))
            count = self._config.hydra.sweeper.get("n_trials")
            chooses = "its jobs" if count is None else counted(count, "job")
            print(f"The sweeper chooses {chooses} while it runs.")
            print(f"{counted(finished, 'job')} in {self.folder} {'is' if finished == 1 else 'are'} finished.")
            return
        status = {job.folder: "done" if read_returned(job.folder) else "to do" for job in self._plan.trials}
        print_cells(self._plan, status)
        done = sum(each == "done" for each in status.values())
        print(f"{counted(len(status), 'job')}: {done} done, {len(status) - done} to do, in {self.folder}")

    def begin(self) -> None:
        """Say what the user should know, open the study in MLflow, and start to show the progress."""
        if self._claims is not None:
            from stability.analysis.claims import find_claims, read_claims  # late: SciPy takes a while

            read_claims(find_claims(self._claims))  # an error in the file has to show now, not after hours of training
        for note in self._notes():
            print(note)
        self._sending.open(self._plan.levels if self._plan else {})
        total = None if self._plan else self._config.hydra.sweeper.get("n_trials")
        self._progress = SweepProgress(self.folder, self._plan, total)
        self._progress.start()

    def end(self, *, stopped: bool) -> str:
        """Stop to show the progress, and write the report.

        Args:
            stopped: Whether Ctrl-C ended the sweep.

        Returns:
            What is missing or went wrong; empty if all is well.
        """
        assert self._progress is not None
        self._progress.stop()
        folders = [*self._progress.folders()]
        problems = [list_missing(self._progress, {})]
        if note := _without_verdict(folders):
            print(note)
        self._sending.send_rest(folders)
        if not _missing(_FOR_REPORT):
            try:
                report_study(self.folder, self._claims, self._progress, tracked=self._sending.is_on, stopped=stopped)
            except StabilityError as error:
                problems.append(str(error))
        return "\n".join(filter(None, problems))

    def _make_plan(self) -> AppCells | None:
        """Compose every job of a grid; None if another sweeper than Hydra's own chooses the jobs."""
        if not str(self._config.hydra.sweeper._target_).endswith(f".{BasicSweeper.__name__}"):
            return None
        jobs, invalid = dict[Path, AppJob](), []
        combinations = grid_jobs(self._config)
        for overrides in combinations:
            try:
                job = self.jobs.find(overrides)
                jobs.setdefault(job.folder, job)
            except (StabilityError, HydraException, OmegaConfBaseException, ValueError) as error:
                invalid.append(InvalidJob(describe_job(self._config, overrides), explain_error(error)))
        if invalid:
            verb = "is" if len(invalid) == 1 else "are"
            raise StabilityError(
                f"{len(invalid)} of {counted(len(combinations), 'configuration')} {verb} invalid; no job was "
                f"started:\n{list_invalid(invalid)}"
            )
        return AppCells(tuple(jobs.values()))

    def _notes(self) -> list[str]:
        notes = []
        if is_dated(self._config):
            notes.append(
                "hydra.sweep.dir has the time in its name, so no job of an earlier sweep is found in it. To continue "
                "a study, give it a fixed folder: hydra.sweep.dir=FOLDER"
            )
        if missing := _missing((*_FOR_REPORT, *self._sending.missing)):
            packages = listed(missing)
            notes.append(f"Not installed: {packages}, for the report and MLflow. Run: {install_command('report')}")
        if self._plan and self._plan.factors:
            if self._plan.seed is None:
                notes.append(
                    "No setting is known as the seed, so a difference between jobs cannot be told from chance."
                )
            elif len({job.settings.get(self._plan.seed) for job in self._plan.trials}) == 1:
                notes.append(
                    f"One seed does not show whether an effect is chance: give several, as in {self._plan.seed}=0,1,2."
                )
        return notes


def _without_verdict(folders: list[Path]) -> str:
    """A sentence on the jobs that are finished and have no verdict; empty if there are none."""
    found = {f: returned for f in folders if (returned := read_returned(f)) and not (f / VERDICT).exists()}
    if not found:
        return ""
    reasons = "; ".join(dict.fromkeys(returned.no_verdict for returned in found.values()))
    verb = "has" if len(found) == 1 else "have"
    named = first_of([short_path(folder) for folder in found], _NAMED)
    return f"{counted(len(found), 'job')} {verb} no verdict: {reasons} ({named})."


def _missing(packages: tuple[str, ...]) -> list[str]:
    return [name for name in packages if find_spec(name) is None]
