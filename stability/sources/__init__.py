"""Runs that exist already, wherever they are: read, judged by their logs, and made into the trials of a study.

A source is a folder, a file, or `mlflow:EXPERIMENT`. Each kind has a file of its own here, which makes a `Task` for
each run. Which kind a folder or a file is, is told from what is in it.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from stability.analysis.settings import merged, with_factors
from stability.analysis.trial import Trials
from stability.analysis.trials import is_folder_of_ours, read_trials
from stability.core.errors import StabilityError
from stability.core.files import short_path
from stability.core.text import counted, listed
from stability.sources import hydra_jobs, mlflow_experiment, run_folders, table_of_runs
from stability.sources.mlflow_experiment import PREFIX
from stability.sources.task import Task, do

_TABLES = (".csv", ".tsv")


def read_sources(
    sources: Sequence[str | Path],
    *,
    uri: str | None = None,
    seed: str | None = None,
    named: Collection[str] = (),
    names: Mapping[str, str] | None = None,
) -> Trials:
    """Read the trials of a study from one or several sources.

    Args:
        sources: Each the folder of one of our studies or trials; a folder with the jobs of a Hydra app; a folder with a
            folder for each run; a table with a row for each run; or `mlflow:EXPERIMENT`.
        uri: The MLflow store; None for the one that the environment names, or else `outputs/mlflow.db`.
        seed: The setting that is the seed, if its name does not say so.
        named: Settings that are asked for: of runs of several programs, those that have them are kept.
        names: What the logs call a signal, as in `stability.diagnosis.readers.read_runs`.

    Raises:
        StabilityError: A source does not exist, or there are no runs in it that can be judged.
    """
    ours, tasks = list[Path](), list[Task]()
    for source in dict.fromkeys(sources):
        if isinstance(source, str) and source.startswith(PREFIX):
            tasks += mlflow_experiment.tasks(source.removeprefix(PREFIX), uri, names or {})
        elif is_folder_of_ours(Path(source)):
            ours.append(Path(source))
        else:
            tasks += _tasks(Path(source), names or {})
    trials, left_out = do(tasks)
    if tasks and not trials and not ours:
        (reason, count), *_ = Counter(reason for _, reason in left_out).most_common(1)
        place = next(place for place, own in left_out if own == reason)
        raise StabilityError(
            f"None of {counted(len(tasks), 'run')} in {listed(map(str, sources))} can be judged. "
            f"{place.name if count == 1 else f'{count:,} of them, such as {place.name}'}: {reason}."
        )
    return merged(
        [
            read_trials(ours),
            Trials(tuple(trial for trial in trials if trial.ours), tuple(left_out)),
            with_factors([trial for trial in trials if not trial.ours], seed=seed, named=named),
        ]
    )


def _tasks(source: Path, names: Mapping[str, str]) -> list[Task]:
    """The tasks of a folder or file that is none of ours."""
    if source.suffix in _TABLES and source.is_file():
        return table_of_runs.tasks(source, names)
    if not source.is_dir():
        what = f"{source} is no table of runs" if source.exists() else f"There is no {source}"
        raise StabilityError(
            f"{what}: give the folder of a study, of a Hydra app's jobs or of several runs, a CSV file with a row for "
            f"each run, or {PREFIX}EXPERIMENT."
        )
    if study := next((path for path in sorted(source.iterdir()) if is_folder_of_ours(path)), None):
        raise StabilityError(f"{source} is a folder of studies: give one of them or several, as {short_path(study)}.")
    found = hydra_jobs.tasks(source, names)
    if not found and (table := next(filter(table_of_runs.is_table_of_wandb, sorted(source.glob("*.csv"))), None)):
        found = table_of_runs.tasks(table, names)
    found = found or run_folders.tasks(source, names)
    if not found:
        raise StabilityError(
            f"There are no runs in {source}: no trial, no job of a Hydra app, no log and no table of runs. Give the "
            "folder of a study, such as outputs/STUDY, or of several runs."
        )
    return found
