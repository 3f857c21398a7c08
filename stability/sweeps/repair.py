"""A Hydra sweeper that finds the smallest change of settings that mends a failed training: `hydra/sweeper=repair`.

If FAILED is the folder of a trial, its verdict says what to try (see `stability.analysis.remedies`). If it is given as
overrides, it is trained first, and once more to see that it fails again, unless its cause is the same in all seeds.
Then the changes are raced (see `stability.analysis.repair`). Trials that are doomed end early: all faults end them,
unless `diagnosis` is given.

What is trained next depends on the outcomes so far alone, and these are read from the trials' folders. So an experiment
that was killed and is started again trains no finished trial again. After each round it writes `repair.json`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.utils import JobReturn
from omegaconf import DictConfig, OmegaConf

from stability.analysis.remedies import Change, no_setting_mends, remedies
from stability.analysis.repair import UNCHANGED, Job, Race, check_failed, next_best, race
from stability.analysis.trial import Record, read_record
from stability.analysis.trials import read_trial
from stability.analysis.tried import Tried, read_launched, read_tried
from stability.config.commandline import override_of
from stability.config.hydra import read_config
from stability.config.names import changes_result, flatten
from stability.core.errors import StabilityError
from stability.core.files import CONFIG, REPAIR, is_folder, short_path, write_atomically
from stability.core.text import counted, load_json, plain
from stability.diagnosis.finding import finite_readings
from stability.diagnosis.verdict import FAULTS, Verdict
from stability.sweeps.budget import Budget
from stability.sweeps.hydra_internals import BasicSweeper
from stability.sweeps.jobs import NextTrial, compose_job
from stability.sweeps.plan import check_count
from stability.sweeps.sides import common_overrides, composed, last_of_each, side_overrides

_FOLLOWS = re.compile(r"\$\{[^:}]*\}")  # an interpolation of another setting; ${scaled:1000} is a number


@dataclass(frozen=True)
class Patient:
    """FAILED.

    Attributes:
        given: As it was given.
        overrides: What makes it, without the seed.
        early: What ends its trials early.
        settings: {dotted name: value} of its settings that follow no others.
        first: The seed on which it failed, or is trained first.
        verdict: Its verdict; None before it was trained.
        typical_norm: The gradient norm that was usual before it failed; None if that is not known.
    """

    given: str
    overrides: tuple[str, ...]
    early: tuple[str, ...]
    settings: Mapping[str, Any]
    first: int
    verdict: Verdict | None = None
    typical_norm: float | None = None

    @property
    def changes(self) -> tuple[Change, ...]:
        """The changes that may mend it; none before it was trained."""
        return remedies(self.verdict, self.settings, self.typical_norm) if self.verdict else ()

    def with_change(self, change: Change) -> list[str]:
        """Return the overrides of FAILED with a change, without the seed and what ends trials early."""
        return last_of_each([*self.overrides, *(override_of(*setting) for setting in change.settings)])


@dataclass
class _Experiment:
    """What was tried so far, to mend what.

    Attributes:
        patient: FAILED.
        seeds: The number of fresh seeds in which a change has to be healthy.
        planned: The trials that were composed.
        results: How those ended that have ended.
        invalid: Changes that are no valid configuration, each with the reason.
        problem: Why there is nothing to repair; empty if there is.
    """

    patient: Patient
    seeds: int
    planned: dict[Job, NextTrial] = field(default_factory=dict)
    results: dict[Job, Tried] = field(default_factory=dict)
    invalid: dict[Change, str] = field(default_factory=dict)
    problem: str = ""

    def needed(self) -> Sequence[Job]:
        """Return the trials that are needed next."""
        if not is_folder(self.patient.given):
            job, self.problem = check_failed(self.results, self.patient.first)
            if self.patient.verdict:
                self.problem = why_hopeless(self.patient) or self.problem
            if job or self.problem:
                return [job] if job and not self.problem else []
        return self.race().needed

    def race(self) -> Race:
        """Say how the race stands."""
        patient = self.patient
        return race(patient.changes, self.results, patient.first, self.seeds, invalid=self.invalid)

    def note(self, job: Job, tried: Tried) -> None:
        """Note how a trial has ended. The first time that FAILED fails, its verdict is taken."""
        self.results[job] = tried
        if job.change == UNCHANGED and tried.failed and self.patient.verdict is None:
            self.patient = _with_verdict(self.patient, self.planned[job].trial.folder)


class RepairSweeper(BasicSweeper):
    """Find the smallest change of settings that makes FAILED healthy.

    Args:
        failed: FAILED: overrides, or the folder of a trial.
        seeds: The number of fresh seeds in which a change has to be healthy.
        trials: The experiment stops after so many trials, those of earlier runs included. None for no limit.
        steps: It stops before its trials make more steps than this. None for no limit.
        params: None: the sweeper chooses all values.
    """

    def __init__(
        self,
        failed: str | None,
        seeds: int,
        trials: int | None,
        steps: int | None,
        params: dict[str, str] | None = None,
    ) -> None:
        super().__init__(max_batch_size=None, params=params)
        check_count("hydra.sweeper.seeds", seeds)
        self._seeds, self._budget = seeds, Budget(trials, steps)

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        """Race changes until one is confirmed, all are spent, or the budget is.

        Raises:
            StabilityError: FAILED does not fail, or no setting mends it; or a trial has no verdict, as another process
                is training it.
        """
        assert self.config is not None
        assert self.launcher is not None
        experiment = _Experiment(patient_of(self.config), self._seeds)
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        returns: list[Sequence[JobReturn]] = []
        while needed := experiment.needed():
            _write(experiment, folder)
            missing = [job for job in needed if self._is_missing(experiment, job)]
            steps = [experiment.planned[job].trial.steps for job in missing]
            batch = missing[: self._budget.affords(steps, [tried.steps for tried in experiment.results.values()])]
            if missing and not batch:
                break
            if batch:
                print(f"round {len(returns) + 1}: {_what(experiment, batch)}", flush=True)
                number = sum(map(len, returns))
                overrides = [experiment.planned[job].overrides for job in batch]
                returns.append(self.launcher.launch(overrides, initial_job_idx=number))
                for job in batch:
                    experiment.note(job, read_launched(experiment.planned[job].trial.folder))
        _write(experiment, folder)
        if experiment.problem:
            raise StabilityError("Nothing can be repaired: see above.")
        return returns

    def _is_missing(self, experiment: _Experiment, job: Job) -> bool:
        """Compose a trial. Return whether it is still to be trained; if not, note how it ended, or what is invalid."""
        assert self.config is not None
        patient = experiment.patient
        overrides = last_of_each([*patient.with_change(job.change), *patient.early, f"seed={job.seed}"])
        try:
            experiment.planned[job] = NextTrial(overrides, compose_job(self.config, overrides)[1])
        except StabilityError as error:
            if job.change == UNCHANGED:
                raise
            experiment.invalid[job.change] = str(error)
            return False
        tried = None if self.config.fresh else read_tried(experiment.planned[job].trial.folder)
        if tried:
            experiment.note(job, tried)
        return tried is None


def patient_of(cfg: DictConfig) -> Patient:
    """Return what is to be repaired, checked before anything is written.

    Args:
        cfg: The configuration that Hydra composed for the whole sweep.

    Raises:
        StabilityError: FAILED is missing, invalid, unfinished, healthy or of a fault that no setting mends; or the
            study's folder belongs to another one.
    """
    settings, arguments = cfg.hydra.sweeper, [*map(str, cfg.hydra.overrides.task)]
    Budget(settings.trials, settings.steps)  # which checks them
    check_count("hydra.sweeper.seeds", settings.seeds)
    given = settings.failed
    if not given:
        raise StabilityError(
            "What is to be repaired? Give overrides or the folder of a trial: python -m stability.repair 'lr=1'"
        )
    arguments = common_overrides("repair", arguments)
    words = last_of_each([*arguments, *side_overrides("FAILED", given, cfg, arguments)])
    raw, trial = composed("FAILED", cfg, words)
    own = {n: v for n, v in flatten(trial.config).items() if changes_result(n) and not _FOLLOWS.search(str(raw.get(n)))}
    ends_as_told = any(word.startswith("diagnosis") for word in arguments)
    patient = Patient(
        given=given,
        overrides=tuple(words),
        early=() if ends_as_told else (override_of("diagnosis.stop_on", FAULTS),),
        settings=own,
        first=_seed_of(given),
    )
    _refuse_other_patient(patient, Path(cfg.hydra.sweep.dir) / REPAIR)
    if is_folder(given):
        patient = _with_verdict(patient, Path(given))
        if reason := why_hopeless(patient):
            raise StabilityError(reason)
    return patient


def why_hopeless(patient: Patient) -> str:
    """Return why no change of a setting is worth a trial; empty if one is."""
    verdict = patient.verdict
    assert verdict is not None
    what = f"{verdict.outcome}{f', {verdict.cause}' if verdict.cause else ''}"
    if no_setting_mends(verdict):
        return f"FAILED: {what}. No setting mends this. {verdict.advice}"
    if not patient.changes:
        return (
            f"FAILED: {what}. None of its settings has a name that tells that it could mend this, such as lr, epsilon, "
            f"clip_norm, warmup_steps or weight_decay. {verdict.advice}"
        )
    return ""


def show_patient(patient: Patient) -> None:
    """Print what a repair would try."""
    if patient.verdict is None:
        print("FAILED is trained first, with one or two seeds: its verdict says what to try.")
        return
    print("FAILED:", *patient.verdict.lines(), sep="\n  ")
    print(f"{counted(len(patient.changes), 'change')} may mend it, tried in this order:")
    width = max(len(str(change)) for change in patient.changes)
    for change in patient.changes:
        print(f"  {change!s:<{width}}  {change.reason}")
    print("A healthy one is confirmed on fresh seeds. Doomed trials end early.")


def _seed_of(given: str) -> int:
    """The seed of FAILED; 0 if it is given as overrides without one."""
    if is_folder(given):
        return int(read_config(Path(given) / CONFIG)["seed"])
    seeds: list[str] = re.findall(r"(?:^|\s)seed=(\d+)", given)
    return int(seeds[-1]) if seeds else 0


def _with_verdict(patient: Patient, folder: Path) -> Patient:
    """FAILED with the verdict of one of its trials."""
    record = read_record(read_trial(folder))
    if record.verdict is None:
        raise StabilityError(f"The trial in {short_path(folder)} has no verdict that can be read.")
    return replace(patient, verdict=record.verdict, typical_norm=_typical_norm(record))


def _typical_norm(record: Record) -> float | None:
    """The median gradient norm before the failure began; None if none was recorded."""
    assert record.verdict is not None
    norms, onset = finite_readings(record.signals, "grad_norm"), record.verdict.onset_step
    before = norms.values if onset is None else norms.up_to(onset - 1)
    return float(np.median(before)) if len(before) else None


def _refuse_other_patient(patient: Patient, file: Path) -> None:
    try:
        known = load_json(file.read_bytes())["overrides"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if _decisive(known) != _decisive(patient.overrides):
        raise StabilityError(
            f"{short_path(file)} is of another training. Give this one a folder of its own: study=OTHER."
        )


def _decisive(overrides: Sequence[str]) -> list[str]:
    """Those overrides that can change the result of a trial."""
    return [word for word in overrides if changes_result(word.lstrip("+~").partition("=")[0])]


def _what(experiment: _Experiment, batch: Sequence[Job]) -> str:
    """What a round is for."""
    found = experiment.race()
    if batch[0].change == UNCHANGED:
        return f"FAILED with seed {batch[0].seed}"
    if found.confirming:
        return f"{found.confirming}, with {counted(len(batch), 'fresh seed')}"
    return str(batch[0].change)


def _write(experiment: _Experiment, folder: Path) -> None:
    """Write what is known into the folder."""
    content = json.dumps(plain(_as_json(experiment)), indent=1, allow_nan=False)
    write_atomically(folder / REPAIR, content.encode())


def _as_json(experiment: _Experiment) -> dict[str, Any]:
    """What is known, for `repair.json`."""
    patient, results = experiment.patient, experiment.results
    found = experiment.race()
    best = next_best(found.answer, results, patient.first) if found.answer else None
    tried = dict.fromkeys(job.change for job in results)
    return {
        "failed": patient.given,
        "overrides": [*patient.overrides],
        "verdict": asdict(patient.verdict) if patient.verdict else None,
        "problem": experiment.problem,
        "finished": bool(experiment.problem or (patient.verdict and not found.needed)),
        "seeds": experiment.seeds,
        "first_seed": patient.first,
        "answer": _change_json(patient, found.answer, results) if found.answer else None,
        "next_best": _change_json(patient, best, results) if best else None,
        "tried": [_change_json(patient, change, results) for change in tried],
        "invalid": [{"change": str(change), "reason": reason} for change, reason in experiment.invalid.items()],
        "not_tried": [str(change) for change in patient.changes if change not in (*tried, *experiment.invalid)],
        "cost": {
            "trials": len(results),
            "steps": sum(result.steps for result in results.values()),
            "whole": max((result.steps for result in results.values()), default=0),
        },
    }


def _change_json(patient: Patient, change: Change, results: Mapping[Job, Tried]) -> dict[str, Any]:
    jobs = sorted((job for job in results if job.change == change), key=lambda job: job.seed)
    return {
        "change": str(change),
        "settings": dict(change.settings),
        "roles": [*change.roles],
        "reason": change.reason,
        "overrides": patient.with_change(change),
        "trials": [{"seed": job.seed} | results[job]._asdict() for job in jobs],
    }
