"""A Hydra sweeper that finds why one configuration fails and another does not: `hydra/sweeper=explain`.

It trains mixtures of the two, in rounds. What a round trains depends on the outcomes so far alone (see
`stability.analysis.explanation`), and these are read from the trials' folders. So an experiment that was killed and is
started again trains no finished trial again, and ends as if it had never been interrupted.

Before the first trial it writes into `explanation.json` what will be decided, with both configurations and a hash. Two
questions cannot share a folder. After each round it writes what is known.
"""

import json
import random
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from omegaconf import DictConfig, OmegaConf

from stability.analysis.beliefs import Difference, Job, Mixture
from stability.analysis.explanation import Explanation, explain, role_of
from stability.analysis.levels import is_number, level_text
from stability.analysis.tried import Tried, read_launched, read_tried
from stability.config.hydra import resolve_config
from stability.core.errors import StabilityError
from stability.core.files import EXPLANATION, short_path, write_atomically
from stability.core.text import counted, listed, load_json, plain
from stability.sweeps.budget import Budget
from stability.sweeps.hydra_internals import BasicSweeper
from stability.sweeps.jobs import NextTrial, PlannedTrial, compose_job
from stability.sweeps.question import Question, digest, read_question

_STAGES = {
    "sides": "does FAILED fail, and HEALTHY not?",
    "search": "the search for the cause",
    "claims": "fresh seeds, to confirm what was found",
    "values": "values between, where numbers flip",
}
_TYPICAL = {"in all seeds": (1.0, 0.0), "in 7 of 10 seeds": (0.7, 0.02)}  # rates of failure of FAILED and of HEALTHY
_SIMULATED = 9  # experiments whose median is said to be typical; with more differences than that, one takes too long


@dataclass
class _Experiment:
    """A question and what was tried so far.

    Attributes:
        question: The question.
        planned: The trials that were composed, since Hydra takes a while for each.
        tried: The trials that have ended, in their order.
        invalid: Mixtures that are no valid configuration, each with the reason.
    """

    question: Question
    planned: dict[Job, NextTrial] = field(default_factory=dict)
    tried: dict[Job, Tried] = field(default_factory=dict)
    invalid: dict[Mixture, str] = field(default_factory=dict)

    def explain(self) -> Explanation:
        """Say what is known, and what is needed next."""
        return explain(self.question.differences, {job: one.failed for job, one in self.tried.items()}, self.invalid)


class ExplainSweeper(BasicSweeper):
    """Find why FAILED fails and HEALTHY does not.

    Args:
        failed: FAILED: overrides, or the folder of a trial.
        healthy: HEALTHY, likewise.
        trials: The experiment stops after so many trials, those of earlier runs included. None for no limit.
        steps: It stops before its trials make more steps than this. None for no limit.
        params: None: the sweeper chooses all values.
    """

    def __init__(
        self,
        failed: str | None,
        healthy: str | None,
        trials: int | None,
        steps: int | None,
        params: dict[str, str] | None = None,
    ) -> None:
        super().__init__(max_batch_size=None, params=params)
        self._budget = Budget(trials, steps)
        self._composed: dict[tuple[str, ...], DictConfig] = {}

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        """Train mixtures until the cause is known or the budget is spent.

        Raises:
            StabilityError: FAILED does not fail, or HEALTHY does; or a trial has no verdict, because another process
                is training it.
        """
        assert self.config is not None
        assert self.launcher is not None
        experiment = _Experiment(question_of(self.config))
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        _write(experiment, folder)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        returns: list[Sequence[JobReturn]] = []
        stage = "sides"
        while (found := experiment.explain()).needed:
            planned = {job: one for job in found.needed if (one := self._plan(experiment, job))}
            if not self.config.fresh:
                ended = {job: read for job, one in planned.items() if (read := read_tried(one.trial.folder))}
                experiment.tried |= ended
            missing = {job: one for job, one in planned.items() if job not in experiment.tried}
            steps = [one.trial.steps for one in missing.values()]
            batch = [*missing][: self._budget.affords(steps, [one.steps for one in experiment.tried.values()])]
            if missing and not batch:
                break
            if batch:
                if stage == "sides" and found.stage != "sides":
                    print(_sides_so_far(experiment))
                stage = found.stage
                print(f"round {len(returns) + 1}: {counted(len(batch), 'trial')}, {_STAGES[stage]}", flush=True)
                number = sum(map(len, returns))
                returns.append(self.launcher.launch([missing[job].overrides for job in batch], initial_job_idx=number))
                experiment.tried |= {job: read_launched(missing[job].trial.folder) for job in batch}
                _write(experiment, folder)
        _write(experiment, folder)
        if experiment.explain().problem:
            raise StabilityError("Nothing can be explained: see above.")
        return returns

    def _plan(self, experiment: _Experiment, job: Job) -> NextTrial | None:
        """Compose a trial; None if its mixture is invalid, which is noted."""
        assert self.config is not None
        if job in experiment.planned:
            return experiment.planned[job]
        if job.mixture in experiment.invalid:
            return None
        overrides = experiment.question.overrides(job.mixture)
        try:
            trial = self._with_seed(overrides, job.seed)
            experiment.planned[job] = NextTrial([*overrides, f"seed={job.seed}"], trial)
        except StabilityError as error:
            experiment.invalid[job.mixture] = str(error)
            return None
        return experiment.planned[job]

    def _with_seed(self, overrides: list[str], seed: int) -> PlannedTrial:
        """Compose a trial. Hydra composes a mixture once: its seeds differ in nothing else."""
        assert self.config is not None
        sweep: Any = OmegaConf.to_container(self.config.hydra.sweep, resolve=False)
        if sweep["subdir"] != "${trial_name:}":  # a name of the user's, which may depend on the overrides
            return compose_job(self.config, [*overrides, f"seed={seed}"])[1]
        key = tuple(overrides)
        if key not in self._composed:
            self._composed[key], _ = compose_job(self.config, overrides)
        composed = self._composed[key]
        composed.seed = seed
        return PlannedTrial(resolve_config(composed), Path(composed.hydra.sweep.dir, composed.hydra.sweep.subdir))


def question_of(cfg: DictConfig) -> Question:
    """Return the question of an explanation, checked before anything is written.

    Args:
        cfg: The configuration that Hydra composed for the whole sweep.

    Raises:
        StabilityError: The question is wrong, or its folder belongs to another one.
    """
    settings = cfg.hydra.sweeper
    Budget(settings.trials, settings.steps)  # which checks them
    question = read_question(cfg, [*map(str, cfg.hydra.overrides.task)], settings.failed, settings.healthy)
    file = Path(cfg.hydra.sweep.dir) / EXPLANATION
    known = _known_statement(file) if file.exists() else None
    if file.exists() and known is None:
        raise StabilityError(
            f"{short_path(file)} is damaged. Delete it and run the same command again: finished trials are kept."
        )
    statement = question.statement()
    if known and known[1] != statement["method"]:
        raise StabilityError(
            f"{short_path(file)} was begun by another version of explain, which tests in another way. The tests must "
            "not change after trials were seen. Give this question a folder of its own: study=OTHER."
        )
    if known and known[0] != digest(statement):
        raise StabilityError(
            f"{short_path(file)} states another question, and what is decided must not change after trials were seen. "
            "Give this question a folder of its own: study=OTHER."
        )
    return question


def _sides_so_far(experiment: _Experiment) -> str:
    """How often the two have failed."""
    every = frozenset(difference.name for difference in experiment.question.differences)
    texts = []
    for name, mixture in (("FAILED", Mixture(every)), ("HEALTHY", Mixture(frozenset()))):
        own = (one.failed for job, one in experiment.tried.items() if job.mixture == mixture)
        ended = [failed for failed in own if failed is not None]
        texts.append(f"{name} failed in {sum(ended)} of {counted(len(ended), 'trial')}")
    return f"{listed(texts)}."


def _known_statement(file: Path) -> tuple[str, Any] | None:
    """The hash of the statement in a file, and the number of its method; None if it has none."""
    try:
        known = load_json(file.read_bytes())
        return str(known["sha256"]), known["statement"]["method"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def show_question(question: Question) -> None:
    """Print what an explanation would try: the differences, and how many trials that takes."""
    print(f"FAILED and HEALTHY differ in {counted(len(question.differences), 'setting')}:")
    width = max(len(difference.name) for difference in question.differences)
    for name, failed, healthy, _ in question.differences:
        print(f"  {name:<{width}}  {level_text(failed)} in FAILED, {level_text(healthy)} in HEALTHY")
    for note in said_before(question):
        print(note)
    for how, (high, low) in _TYPICAL.items():
        one, three = (_typical_trials(question.differences, count, high, low) for count in (1, 3))
        few = len(question.differences) < 4
        causes = "" if few else f" if one of them is the cause, {three} if three are it together"
        print(f"If FAILED fails {how}: about {one} trials{causes}.")
    if any(is_number(one.failed) and is_number(one.healthy) for one in question.differences):
        print("To find between which two values a number flips takes 20 to 60 trials more.")


def said_before(question: Question) -> list[str]:
    """Return what a user should know before the first trial."""
    notes = [*question.notes]
    if question.following:
        notes.append(f"Not tried on their own, since they follow others: {', '.join(question.following)}.")
    if question.without_effect:
        notes.append(f"Left out, since they change no result: {', '.join(question.without_effect)}.")
    return notes


def _typical_trials(differences: Sequence[Difference], count: int, high: float, low: float) -> int:
    """How many trials it takes, without values between, if the last differences are the cause together.

    Where failures come by chance, one experiment may take three times as many as the next: the median of a few counts.
    """
    cause = {difference.name for difference in differences[-count:]}
    plain_ones = [difference._replace(failed="failed", healthy="healthy") for difference in differences]
    made = []
    by_chance = low > 0 or high < 1
    for seed in range(_SIMULATED if by_chance and len(differences) <= _SIMULATED else 1):
        chance = random.Random(seed)
        outcomes: dict[Job, bool | None] = {}
        while needed := explain(plain_ones, outcomes).needed:
            outcomes |= {job: chance.random() < (high if cause <= job.mixture.failed else low) for job in needed}
        made.append(len(outcomes))
    return round(statistics.median(made))


def _write(experiment: _Experiment, folder: Path) -> None:
    """Write the statement and what is known into the folder."""
    statement = experiment.question.statement()
    content = {"sha256": digest(statement), "statement": statement} | _as_json(experiment)
    write_atomically(folder / EXPLANATION, json.dumps(plain(content), indent=1, allow_nan=False).encode())


def _as_json(experiment: _Experiment) -> dict[str, Any]:
    """What is known, for `explanation.json`."""
    question, found = experiment.question, experiment.explain()
    tried = experiment.tried
    by_mixture: dict[Mixture, list[Job]] = {}
    for job in tried:
        by_mixture.setdefault(job.mixture, []).append(job)
    roles = {difference.name: role_of(difference.name, found) for difference in question.differences}
    return {
        "arguments": [*question.arguments],
        "finished": not found.needed,
        "stage": found.stage,
        "problem": found.problem,
        "confirmed": found.confirmed,
        "complete": found.complete,
        "sufficient": [sorted(names) for names in found.sufficient],
        "cures": [sorted(names) for names in found.cures],
        "contradiction": [sorted(names) for names in found.contradiction or ()],
        "notes": said_before(question),
        "differences": [
            {
                "name": name,
                "failed": failed,
                "healthy": healthy,
                "role": roles[name].kind,
                "together_with": [sorted(names) for names in roles[name].others],
            }
            for name, failed, healthy, _ in question.differences
        ],
        "flips": [asdict(flip) | {"others": sorted(flip.others)} for flip in found.flips],
        "claims": [asdict(claim) | {"mixture": _mixture_json(claim.mixture)} for claim in found.claims],
        "mixtures": [
            _mixture_json(mixture)
            | {
                "overrides": question.overrides(mixture),
                "trials": [{"seed": job.seed} | tried[job]._asdict() for job in sorted(jobs, key=lambda job: job.seed)],
            }
            for mixture, jobs in by_mixture.items()
        ],
        "invalid": [_mixture_json(mixture) | {"reason": reason} for mixture, reason in experiment.invalid.items()],
        "cost": {"trials": len(tried), "steps": sum(one.steps for one in tried.values())},
    }


def _mixture_json(mixture: Mixture) -> dict[str, Any]:
    return {"failed": sorted(mixture.failed), "between": mixture.between and [*mixture.between]}
