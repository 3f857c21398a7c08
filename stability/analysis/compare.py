"""Critical differences: everything in which two trials differ, with its effect if the study has measured it."""

from dataclasses import dataclass
from pathlib import Path

from stability.analysis.effects import Effect, Response, difference_between
from stability.analysis.levels import Level
from stability.analysis.matching import cells_of, main_factors
from stability.analysis.trial import Trial, Trials
from stability.config.names import short_name
from stability.core.errors import StabilityError

_MOST_CELLS = 200  # whose trials are compared to find the closest pair
_NOT_ALONE = "not varied alone in this study"


@dataclass(frozen=True)
class Difference:
    """A value of the configuration in which two trials differ.

    Attributes:
        name: Its dotted name.
        first: Its value in the first trial.
        second: Its value in the second trial.
        effects: {response: effect of the change from `first` to `second`}; empty if not measured.
        note: Why there are no effects.
    """

    name: str
    first: Level
    second: Level
    effects: dict[Response, Effect]
    note: str = ""


def compare(trials: Trials, first: Trial, second: Trial) -> list[Difference]:
    """Find everything in which two trials differ, sorted by its effect on health: the largest first."""
    found = []
    if first.seed != second.seed:
        found.append(Difference("seed", first.seed, second.seed, {}, note="chance"))
    main = main_factors(trials)
    changed_with: dict[str, str] = {}
    names = [n for n in {**first.factors, **second.factors} if first.factors.get(n) != second.factors.get(n)]
    for name in sorted(names, key=lambda name: name not in main):
        levels = first.factors.get(name), second.factors.get(name)
        if name in changed_with:
            found.append(Difference(name, *levels, {}, f"changes together with {short_name(changed_with[name])}"))
            continue
        effects = difference_between(trials, name, *levels)
        if effects[0].matches:
            changed_with |= dict.fromkeys(effects[0].tied, name)
            found.append(Difference(name, *levels, {effect.response: effect for effect in effects}))
        else:
            found.append(Difference(name, *levels, {}, _NOT_ALONE))
    return sorted(found, key=lambda d: -abs(d.effects["healthy"].effect) if d.effects else 1.0)


def find_trial(trials: Trials, wanted: str) -> Trial:
    """Find a trial by its name, the beginning of its name, or its folder.

    Raises:
        StabilityError: There is no such trial, it is not finished, or there are several.
    """
    path = Path(wanted).resolve()
    exact = [trial for trial in trials.trials if trial.folder == path or trial.name == wanted]
    found = exact or [trial for trial in trials.trials if trial.name.startswith(wanted)]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(str(trial.folder if exact else trial.name) for trial in found[:4])
        raise StabilityError(
            f"{len(found)} trials match {wanted}: {names} … Give more of the name, or the path of the folder."
        )
    reasons = [reason for folder, reason in trials.left_out if folder == path or folder.name.startswith(wanted)]
    if reasons:
        raise StabilityError(f"{wanted} cannot be compared: {reasons[0]}.")
    raise StabilityError(
        f"There is no trial {wanted}: give the name of a folder in the study, such as {_example(trials)}."
    )


def closest_pair(trials: Trials) -> tuple[Trial, Trial] | None:
    """Find the failed and the healthy trial that differ in the fewest factors, if possible with the same seed.

    Returns:
        The failed trial and the healthy one; None if the study has no failed or no healthy trial.
    """
    ranks = {name: {x: rank for rank, x in enumerate(levels)} for name, levels in main_factors(trials).items()}
    failed, healthy = [], []
    for own in cells_of(trials).values():
        failed += [trial for trial in own if not trial.healthy][:1]
        healthy += [trial for trial in own if trial.healthy][:1]

    def distance(pair: tuple[Trial, Trial]) -> tuple[bool, int, bool, int]:
        a, b = (trial.factors for trial in pair)
        apart = [abs(rank[a.get(name)] - rank[b.get(name)]) for name, rank in ranks.items()]
        return not any(apart), sum(map(bool, apart)), pair[0].seed != pair[1].seed, sum(apart)

    pairs = [(a, b) for a in failed[:_MOST_CELLS] for b in healthy[:_MOST_CELLS]]
    return min(pairs, key=distance, default=None)


def _example(trials: Trials) -> str:
    return trials.trials[0].name if trials.trials else "one that is finished"
