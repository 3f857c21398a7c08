"""The answer of a study, in three sentences made from its trials."""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import product

import numpy as np

from stability.analysis.boundary import Boundary
from stability.analysis.effects import MOST_LEVELS, RESPONSES, Effect, Response, difference_between
from stability.analysis.levels import Level, level_text
from stability.analysis.matching import Cell, interaction_cells, main_factors, match
from stability.analysis.rulings import Ruling
from stability.analysis.trials import Trial, Trials
from stability.config.names import short_name
from stability.core.text import counted, listed
from stability.reporting.wording import (
    cell_text,
    counts_text,
    effect_text,
    names_text,
    p_text,
    ratio_text,
)

_PAIR = 1.5  # of a factor's own effect: where the two just have to come together, the interaction is twice that
_NONE = 1e-9  # a smaller effect is none
_MOST_TOLD = 6  # boundaries; of more, the lowest and the highest
_ORDER: tuple[Response, ...] = ("healthy", "steps", "per")  # what matters most, first


def answer(
    trials: Trials, found: Sequence[Effect], rulings: Sequence[Ruling], *, unfinished: bool = False
) -> tuple[str, str, str]:
    """What made training unhealthy, how large that effect is, and how sure this is.

    `found` are the `effects` of the trials. The effect is the largest on `healthy`; where nothing has any, on the steps
    on the plateau, then on PER. A pair of factors is named where what it does together is one and a half times what
    either does by itself at the same levels, or more. With trials that are `unfinished`, all is said so far.
    """
    total = len(trials.trials)
    if not total:
        return (
            "No trial is finished yet, so nothing can be said.",
            "There is no effect to tell.",
            _sure(None, 0, rulings),
        )
    bad = [trial for trial in trials.trials if not trial.healthy]
    every = f"all {total} trials are" if total > 1 else "the only trial is"
    if not bad:
        first = f"{every} healthy ({counts_text(trials.trials)}): nothing made training unhealthy"
    elif len(bad) == total:
        first = f"{every} unhealthy ({counts_text(bad)}): nothing that was varied made training healthy"
    else:
        first = f"{len(bad)} of {total} trials {'are' if len(bad) > 1 else 'is'} unhealthy ({counts_text(bad)})"
    strongest, compared = _strongest(trials, found)
    if strongest is None:
        second = _why_none(trials, found)
    else:
        second = _pair(trials, strongest) if strongest.kind == "interaction" else _single(trials, strongest)
        subject = ("the pair of " if strongest.kind == "interaction" else "") + names_text(strongest.factors)
        if uncompared := [name for name, levels in main_factors(trials).items() if len(levels) > MOST_LEVELS]:
            subject += f" ({names_text(uncompared)}, with more than {MOST_LEVELS} levels, not compared)"
        if strongest.response == "healthy":
            first += f", and what decides that most is {subject}"
        else:
            what = "how long the blank plateau lasts" if strongest.response == "steps" else "the final PER"
            first += ", which goes with no factor" if 0 < len(bad) < total else ""
            first += f"; what changes {what} most is {subject}"
    so_far = "so far " if unfinished else ""
    return _capital(f"{so_far}{first}."), _capital(second), _sure(strongest, compared, rulings)


def boundary_answer(
    found: Sequence[Boundary], rulings: Sequence[Ruling], *, unfinished: bool = False
) -> tuple[str, str, str]:
    """The answer of a study by bisection: the largest healthy learning rate of each cell, and how sure that is.

    Half of its trials fail by design, so that the effect of a factor on health says little.
    """
    so_far = "so far " if unfinished else ""
    if not found:
        return (
            _capital(f"{so_far}nowhere were two learning rates tried, so no largest healthy one can be told."),
            "There is no difference to tell.",
            _sure(None, 0, rulings),
        )
    known = sorted((b for b in found if math.isfinite(b.lr)), key=lambda b: b.lr)
    told = found if len(found) <= _MOST_TOLD or len(known) < 2 else [known[0], known[-1]]
    cells = zip(told[:_MOST_TOLD], _apart(told[:_MOST_TOLD]), strict=True)
    rates = [f"{_boundary_text(boundary)}{f' at {cell}' if cell else ''}" for boundary, cell in cells]
    first = f"is {listed(rates)}" if told is found else f"goes from {' to '.join(rates)}"
    second = "There are no two of these to compare."
    if len(known) > 1:
        low, high = known[0], known[-1]
        of_low, of_high = _apart([low, high])
        second = f"At {of_high} it is {ratio_text(high.lr / low.lr)} times that at {of_low}."
    fewest, most = (end(boundary.seeds for boundary in found) for end in (min, max))
    sure = f"The intervals are at 95 %, over {f'{fewest} to ' if fewest < most else ''}{counted(most, 'seed')}"
    if fewest == 1:
        sure = "Where there is 1 seed, the brackets are the rates tried next to it, and tell nothing of chance"
    return _capital(f"{so_far}the largest healthy lr {first}."), second, f"{sure}; {_claims_text(rulings)}."


def _apart(told: Sequence[Boundary]) -> list[str]:
    """Each one's cell, by the factors in which they differ."""
    differing = [name for name in told[0].cell if len({boundary.cell[name] for boundary in told}) > 1]
    return [cell_text({name: boundary.cell[name] for name in differing}) for boundary in told]


def _boundary_text(boundary: Boundary) -> str:
    """`0.027 [0.024, 0.032]`, or what is known where a search ended at its limits."""
    low, high = (ratio_text(end) for end in (boundary.low, boundary.high))
    if math.isfinite(boundary.lr):
        return f"{ratio_text(boundary.lr)} [{low}, {high}]"
    if boundary.low:
        return f"{low} or more"
    return f"below {high}" if math.isfinite(boundary.high) else "not found"


def search_answer(trials: Trials, rulings: Sequence[Ruling], *, unfinished: bool = False) -> tuple[str, str, str]:
    """The answer of a search: the best of its stable trials, and how sure that is."""
    total = len(trials.trials)
    stable = sorted((trial for trial in trials.trials if trial.outcome == "stable"), key=lambda trial: trial.per)
    so_far = "so far " if unfinished else ""
    if not stable:
        first = f"none of {total} trials is stable ({counts_text(trials.trials)}), so there is no best one"
        return _capital(f"{so_far}{first}."), "There is no PER to tell.", _sure(None, 0, rulings)
    best = stable[0]
    where = cell_text({name: best.factors.get(name) for name in main_factors(trials)})
    middle = float(np.median([trial.per for trial in stable]))
    return (
        _capital(f"{so_far}the best of {total} trials has PER {best.per:.3f}{f', at {where}' if where else ''}."),
        f"{len(stable)} of {total} are stable ({counts_text(trials.trials)}), with a median PER of {middle:.3f}.",
        f"The best of many is partly luck: train it with other seeds; {_claims_text(rulings)}.",
    )


def _strongest(trials: Trials, found: Sequence[Effect]) -> tuple[Effect | None, int]:
    """The effect to tell, in the direction that harms if it is of one factor, and among how many it was chosen."""
    told = {effect.factors[0] for effect in found if len(effect.factors) == 1}
    levels = {name: own for name, own in main_factors(trials).items() if name in told}
    pairs = [effect for effect in found if effect.kind == "interaction" and effect.matches]
    compared = sum(math.comb(len(own), 2) for own in levels.values()) + len(pairs) // len(RESPONSES)
    on_per = {(effect.factors, effect.levels): abs(effect.effect) for effect in pairs if effect.response == "per"}
    for response in _ORDER:
        singles = [e for name in levels if (e := _worst_against_best(trials, name, levels[name], response))]
        single = max(singles, key=_size, default=None)
        alike = [effect for effect in pairs if effect.response == response]  # a single failed cell makes several so
        pair = max(alike, key=lambda effect: (*_size(effect), on_per[effect.factors, effect.levels]), default=None)
        if pair and _size(pair)[1] > max(_NONE, _PAIR * _alone(trials, pair)) and _size(pair) >= _size(single or pair):
            return pair, compared
        if single and _size(single)[1] > _NONE:
            return single, compared
    return None, compared


def _size(effect: Effect) -> tuple[bool, float]:
    """Larger for what more than one seed tells, and then for the larger effect."""
    return effect.seeds > 1, float(abs(np.log(effect.effect) if effect.response == "steps" else effect.effect))


def _alone(trials: Trials, pair: Effect) -> float:
    """The larger of what each of two factors does by itself, at the levels and in the trials of the pair."""
    both, first, second, neither = _means(trials, _cells(pair), pair.response)
    return max(abs(both + first - second - neither), abs(both + second - first - neither)) / 2


def _worst_against_best(trials: Trials, name: str, levels: Sequence[Level], response: Response) -> Effect | None:
    """The effect of a factor's worst level against its best one, both by the mean of their trials."""
    sign = -1 if response == "healthy" else 1
    harms = [
        sign * float(np.mean([_value(t, response) for t in trials.trials if t.factors.get(name) == level]))
        for level in levels
    ]
    places = [[i for i, value in enumerate(harms) if value == end] for end in (min(harms), max(harms))]
    best, worst = min(product(*places), key=lambda pair: abs(pair[0] - pair[1]))  # of equals, those next to each other
    effect = next(e for e in difference_between(trials, name, levels[best], levels[worst]) if e.response == response)
    return effect if best != worst and effect.matches else None


def _single(trials: Trials, effect: Effect) -> str:
    (name,), ((best, worst),) = effect.factors, effect.levels
    at = f"at {short_name(name)} {level_text(worst)} instead of {level_text(best)}"
    along = " (with it " + names_text(effect.tied) + (" change)" if len(effect.tied) > 1 else " changes)")
    at += along if effect.tied else ""
    if effect.response == "healthy":
        after, before = _means(trials, [{name: worst}, {name: best}], "healthy")
        return f"{at}, {after:.0%} instead of {before:.0%} are healthy, all else alike: {_size_text(effect)}."
    what = "the blank plateau's length" if effect.response == "steps" else "the final PER"
    return f"{at}, {what} changes by {_size_text(effect)}, all else alike."


def _pair(trials: Trials, effect: Effect) -> str:
    (a, b), ((a1, a2), (b1, b2)) = effect.factors, effect.levels
    step = f"going from {short_name(a)} {level_text(a1)} to {level_text(a2)}"
    low, high = (f"{short_name(b)} {level_text(level)}" for level in (b1, b2))
    if effect.response == "healthy":
        end2, end1, start2, start1 = _means(trials, _cells(effect), "healthy")
        return (
            f"{step} takes the healthy share from {start1:.0%} to {end1:.0%} at {low}, "
            f"and from {start2:.0%} to {end2:.0%} at {high}: the two together make {_size_text(effect)}."
        )
    what = "the blank plateau's length" if effect.response == "steps" else "the final PER"
    return f"{step} changes {what} by {_size_text(effect)} at {high}, beyond what it does at {low}."


def _cells(pair: Effect) -> list[Cell]:
    (a, b), (a_levels, b_levels) = pair.factors, pair.levels
    return interaction_cells(a, a_levels, b, b_levels)[0]


def _means(trials: Trials, cells: Sequence[Cell], response: Response) -> list[float]:
    """The mean of a response in each cell, of the trials that are matched."""
    matches = match(trials.trials, cells).matches
    return [float(np.mean([_value(own[place], response) for _, own in matches])) for place in range(len(cells))]


def _value(trial: Trial, response: Response) -> float:
    return math.log(trial.steps) if response == "steps" else float(getattr(trial, response))


def _size_text(effect: Effect) -> str:
    return effect_text(effect) + (" (95 % interval)" if effect.seeds > 1 else "")


def _why_none(trials: Trials, found: Sequence[Effect]) -> str:
    if len(trials.trials) == 1:
        return "One trial has nothing to be compared with, so there is no effect to tell."
    if not trials.factors:
        return "They differ in nothing but their seed, so there is no effect to tell."
    factors = names_text(main_factors(trials))
    if any(effect.matches for effect in found):
        return (
            f"Changing {factors} made no difference to health, to the steps on the blank plateau, or to the final PER."
        )
    return f"No two trials of a seed differ in one factor only, so of {factors} no effect can be told."


def _sure(effect: Effect | None, compared: int, rulings: Sequence[Ruling]) -> str:
    if effect is None:
        sure = ""
    elif effect.seeds == 1:
        sure = "that rests on 1 seed, which tells nothing of chance"
    else:
        matched = "pairs" if effect.kind == "difference" else "foursomes"
        least = f", the least that {effect.seeds} seeds can give" if effect.p <= 2 / 2**effect.seeds > 0.01 else ""
        chosen = f", not corrected for being the largest of {compared} effects" if compared > 1 else ""
        sure = f"that rests on {effect.matches} {matched} of {counted(effect.seeds, 'seed')}"
        sure += f" ({effect.test}: {p_text(effect.p)}{least}{chosen})"
    claims = _claims_text(rulings)
    return _capital(f"{sure}; {claims}." if sure else f"{claims}.")


def _claims_text(rulings: Sequence[Ruling]) -> str:
    """`of 3 claims, 1 confirmed, 0 refuted and 2 inconclusive`."""
    counts = Counter(ruling.ruling for ruling in rulings)
    not_run = sum(not ruling.seeds for ruling in rulings)
    if not rulings:
        return "no claim was stated beforehand"
    parts = [f"{counts[ruling]} {ruling}" for ruling in ("confirmed", "refuted", "inconclusive")]
    text = f"of {len(rulings)} claims, {listed(parts)}"
    return f"{text}, {not_run} of these for want of trials" if not_run else text


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
