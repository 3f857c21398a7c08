"""Trains a grid seed by seed until its claims are ruled on: `sweep.until=ruled`.

Before the first trial the claims are recorded with their hash, so that nobody can change them after a look at the
trials. The same record tells the report to use tests that allow such looks (`analysis/anytime.py`).
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf

from stability.analysis.settings import levels_of
from stability.analysis.stopping_record import StoppingRecord, read_stopping_record, write_stopping_record
from stability.core.errors import StabilityError
from stability.core.files import VERDICT, short_path
from stability.core.text import counted
from stability.sweeps.jobs import PlannedTrial, compose_job, grid_jobs

_RULED = "ruled"


def stops_when_ruled(cfg: DictConfig) -> bool:
    """Return whether a sweep ends when its claims are ruled on.

    Raises:
        StabilityError: `sweep.until` is something else, or there are no claims.
    """
    until = cfg.sweep.until
    if until is None:
        return False
    if until != _RULED:
        raise StabilityError(f"sweep.until={until}: give {_RULED}, or null to train all trials.")
    if cfg.sweep.claims is None:
        raise StabilityError("sweep.until=ruled needs claims to rule on: give sweep.claims=NAME.")
    if cfg.fresh:
        raise StabilityError("sweep.until=ruled with fresh=true: give one of them. To begin anew, give study=NAME.")
    if cfg.hydra.sweeper.get("max_batch_size") is not None:
        raise StabilityError("sweep.until=ruled makes its own batches: leave out hydra.sweeper.max_batch_size.")
    return True


def record_claims(cfg: DictConfig) -> None:
    """Record the claims of a study before its first trial.

    Args:
        cfg: The configuration that Hydra composed for the whole sweep.

    Raises:
        StabilityError: The claims are not those with which the study began, or it has trials and no record of claims.
    """
    from stability.analysis.claims import find_claims  # late: SciPy takes a while

    study, digest = Path(cfg.hydra.sweep.dir), _digest(find_claims(cfg.sweep.claims))
    study.mkdir(parents=True, exist_ok=True)
    before = read_stopping_record(study)
    if before is None and any(study.glob(f"*/{VERDICT}")):
        raise StabilityError(
            f"{short_path(study)} has finished trials already, so its claims may come after a look at them. Begin "
            "another study, with study=NAME."
        )
    if before is not None and before.claims != digest:
        raise StabilityError(
            f"The claims have changed since {short_path(study)} began. A claim that is stated after a look at the "
            "trials proves nothing. Restore the file, or begin another study, with study=NAME."
        )
    write_stopping_record(study, StoppingRecord(digest))


def train_until_ruled(cfg: DictConfig, launcher: Launcher) -> list[Sequence[JobReturn]]:
    """Train the trials of a grid in rounds, as long as a claim needs them.

    Args:
        cfg: The configuration that Hydra composed for the whole sweep.
        launcher: Trains the trials of a round.
    """
    from stability.analysis.claims import find_claims, read_claims  # late: SciPy takes a while
    from stability.analysis.open_claims import Planned, given_up, needed_next
    from stability.analysis.trial import Trials
    from stability.analysis.trials import read_trials

    study, path = Path(cfg.hydra.sweep.dir), find_claims(cfg.sweep.claims)
    claims = read_claims(path)
    OmegaConf.save(cfg, study / "multirun.yaml")  # as Hydra's sweepers do
    jobs = {trial.folder: (job, trial) for job in grid_jobs(cfg) if (trial := _trial(cfg, job))}
    planned = {folder: Planned(trial.config.seed, levels_of(trial.settings)) for folder, (_, trial) in jobs.items()}
    begun = {folder for folder in jobs if (folder / VERDICT).exists()}

    def finished() -> Trials:
        return read_trials([study]) if begun else Trials(())

    returns: list[Sequence[JobReturn]] = []
    while needed := needed_next(claims, finished(), planned, begun):
        print(f"round {len(returns) + 1}: {counted(len(needed), 'trial')}", flush=True)
        launched = sum(map(len, returns))
        returns.append(launcher.launch([jobs[folder][0] for folder in needed], initial_job_idx=launched))
        begun.update(needed)
    spared = tuple(folder.name for folder in jobs if folder not in begun)
    hopeless = tuple(given_up(claims, finished(), planned, begun))
    write_stopping_record(study, StoppingRecord(_digest(path), len(jobs), spared, hopeless))
    return returns


def spared_trials(study: Path) -> tuple[str, ...]:
    """Return the names of the trials that a study has left out, because no claim needs them."""
    record = read_stopping_record(study)
    return record.spared if record else ()


def note_on_seeds(trials: Sequence[PlannedTrial]) -> list[str]:
    """Say that a sweep has too few seeds to rule on a claim; nothing if it has enough."""
    from stability.analysis.open_claims import FEWEST

    seeds = len({trial.config.seed for trial in trials})
    if seeds >= FEWEST:
        return []
    return [
        f"With {counted(seeds, 'seed')} a claim is only ruled on by a counterexample. Give at least {FEWEST}, and more "
        f"for several claims: 'seed=range({2 * FEWEST})'."
    ]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _trial(cfg: DictConfig, job: Sequence[str]) -> PlannedTrial | None:
    """The trial of a job; None if it is invalid, which has been reported."""
    try:
        return compose_job(cfg, job, keep=True)[1]
    except StabilityError:
        return None
