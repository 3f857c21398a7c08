"""Summarize a study in three sentences: what made training unhealthy, how large that effect is, how sure this is.

There is a function for each kind of study: a grid, a search for boundaries by bisection, a search for the best trial.
"""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import product

import numpy as np

from stability.analysis.boundary import LR, Boundary
from stability.analysis.effects import RESPONSES, Effect, Response, difference_between
from stability.analysis.levels import MOST_LEVELS, Level, level_text
from stability.analysis.matching import Cell, interaction_cells, main_factors, match
from stability.analysis.rulings import Ruling
from stability.analysis.trial import Trial, Trials
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

# A pair of factors is named only if its interaction is this many times the effect of either factor alone. If only both
# together have an effect, the interaction is twice as large.
_PAIR = 1.5
_NOTHING = "No trial is finished yet, so nothing is known."
_NONE = 1e-9  # a smaller effect counts as none
_MOST_BOUNDARIES = 6  # if there are more, only the lowest and the highest are listed
_ORDER: tuple[Response, ...] = ("healthy", "steps", "per")  # by importance
_WORDS: dict[Response, str] = {"steps": "the length of the blank plateau", "per": "the final {metric}"}


def summarize_grid(
    trials: Trials, found: Sequence[Effect], rulings: Sequence[Ruling], *, unfinished: bool = False
) -> tuple[str, str, str]:
    """Summarize a study whose trials are a grid.

    The effect that is reported is the largest on `healthy`; if no factor has one, the largest on the steps on the
    plateau, and then on PER. A pair of factors is reported if its interaction is at least one and a half times the
    effect of either factor alone at the same levels.

    Args:
        trials: The trials.
        found: Their `effects`.
        rulings: The rulings on the claims.
        unfinished: Whether there are trials without a verdict.
    """
    total = len(trials.trials)
    if not total:
        return (
            _NOTHING,
            "There is no effect to report.",
            _confidence(None, 0, rulings),
        )
    bad = [trial for trial in trials.trials if not trial.healthy]
    every = f"all {total} trials are" if total > 1 else "the only trial is"
    known = any(trial.outcome != "undecided" for trial in bad)
    state = "unhealthy" if known else "not known to be healthy"
    if not bad:
        first = f"{every} healthy ({counts_text(trials.trials)}): nothing made training unhealthy"
    elif len(bad) == total:
        first = f"{every} {state} ({counts_text(bad)}): no factor made training healthy"
    else:
        first = f"{len(bad)} of {total} trials {'are' if len(bad) > 1 else 'is'} {state} ({counts_text(bad)})"
    strongest, compared = _strongest(trials, found)
    seeds_known = any(trial.seed is not None for trial in trials.trials)
    if strongest is None:
        second = _why_no_effect(trials, found)
    else:
        second = _pair(trials, strongest) if strongest.kind == "interaction" else _single(trials, strongest)
        subject = ("the pair of " if strongest.kind == "interaction" else "") + names_text(strongest.factors)
        what = "this" if strongest.response == "healthy" else _words(trials, strongest.response)
        if strongest.response != "healthy" and 0 < len(bad) < total:
            first += "; no factor has an effect on this"
        first += f"; {subject} has the largest effect on {what}"
        if uncompared := [name for name, levels in main_factors(trials).items() if len(levels) > MOST_LEVELS]:
            first += f" (not compared, because of more than {MOST_LEVELS} levels: {names_text(uncompared)})"
    so_far = "so far " if unfinished else ""
    return (
        _capital(f"{so_far}{first}."),
        _capital(second),
        _confidence(strongest, compared, rulings, seeds_known=seeds_known),
    )


def summarize_boundaries(
    found: Sequence[Boundary], rulings: Sequence[Ruling], *, setting: str = LR, unfinished: bool = False
) -> tuple[str, str, str]:
    """Summarize a study by bisection: the largest healthy value of a setting in each cell, and how sure this is.

    Half of its trials fail by design, so the effect of a factor on health says little.
    """
    so_far, name = "so far " if unfinished else "", short_name(setting)
    if not found:
        return (
            _capital(f"{so_far}no cell was tried at two values of {name}, so the largest healthy one is not known."),
            "There is no difference to report.",
            _confidence(None, 0, rulings),
        )
    known = sorted((b for b in found if math.isfinite(b.value)), key=lambda b: b.value)
    shown = found if len(found) <= _MOST_BOUNDARIES or len(known) < 2 else [known[0], known[-1]]
    cells = zip(shown[:_MOST_BOUNDARIES], _differing_cells(shown[:_MOST_BOUNDARIES]), strict=True)
    rates = [f"{_boundary_text(boundary)}{f' at {cell}' if cell else ''}" for boundary, cell in cells]
    first = f"is {listed(rates)}" if shown is found else f"ranges from {' to '.join(rates)}"
    second = "There are no two boundaries to compare."
    if len(known) > 1:
        low, high = known[0], known[-1]
        of_low, of_high = _differing_cells([low, high])
        second = f"At {of_high} it is {ratio_text(high.value / low.value)} times as high as at {of_low}."
    fewest, most = (end(boundary.seeds for boundary in found) for end in (min, max))
    sure = f"The brackets are 95 % intervals over {f'{fewest} to ' if fewest < most else ''}{counted(most, 'seed')}"
    if fewest == 1:
        sure = "With 1 seed, the brackets are only the nearest values that were tried, and say nothing about chance"
    return _capital(f"{so_far}the largest healthy {name} {first}."), second, f"{sure}; {_claims_text(rulings)}."


def _differing_cells(shown: Sequence[Boundary]) -> list[str]:
    """Name the cell of each boundary by the factors in which they differ."""
    differing = [name for name in shown[0].cell if len({boundary.cell[name] for boundary in shown}) > 1]
    return [cell_text({name: boundary.cell[name] for name in differing}) for boundary in shown]


def _boundary_text(boundary: Boundary) -> str:
    """`0.027 [0.024, 0.032]`; `0.5 or more`, `below 0.01` or `not found` if the search ended at its limits."""
    low, high = (ratio_text(end) for end in (boundary.low, boundary.high))
    if math.isfinite(boundary.value):
        return f"{ratio_text(boundary.value)} [{low}, {high}]"
    if boundary.low:
        return f"{low} or more"
    return f"below {high}" if math.isfinite(boundary.high) else "not found"


def summarize_search(trials: Trials, rulings: Sequence[Ruling], *, unfinished: bool = False) -> tuple[str, str, str]:
    """Summarize a search: the best of its stable trials, and how sure this is."""
    total = len(trials.trials)
    stable = sorted((trial for trial in trials.trials if trial.outcome == "stable"), key=_rate)
    so_far = "so far " if unfinished else ""
    if not stable:
        if not total:
            return _NOTHING, f"There is no {trials.metric} to report.", _confidence(None, 0, rulings)
        first = f"none of {counted(total, 'trial')} is stable ({counts_text(trials.trials)}), so there is no best trial"
        lowest = min(trials.trials, key=_rate)
        second = (
            f"The lowest {trials.metric} is {lowest.per:.3f}{_at(trials, lowest)}, but that trial is {lowest.outcome}."
        )
        return _capital(f"{so_far}{first}."), second, _confidence(None, 0, rulings)
    best, are = stable[0], "is" if len(stable) == 1 else "are"
    middle = float(np.nanmedian([trial.per for trial in stable]))
    return (
        _capital(
            f"{so_far}the best of {counted(total, 'trial')} has {trials.metric} {best.per:.3f}{_at(trials, best)}."
        ),
        f"{len(stable)} of {total} {are} stable ({counts_text(trials.trials)}), "
        f"with a median {trials.metric} of {middle:.3f}.",
        f"The best of many trials is partly luck: train it with other seeds; {_claims_text(rulings)}.",
    )


def _rate(trial: Trial) -> float:
    """The key that sorts trials by their error rates, those without one last."""
    return math.inf if math.isnan(trial.per) else trial.per


def _at(trials: Trials, trial: Trial) -> str:
    """Name the trial's cell: `, at lr 0.1`. Empty if the trials have no factors."""
    where = cell_text({name: trial.factors.get(name) for name in main_factors(trials)})
    return f", at {where}" if where else ""


def _strongest(trials: Trials, found: Sequence[Effect]) -> tuple[Effect | None, int]:
    """Choose the effect to report; for one factor, the change that harms. Also return how many were compared."""
    single = {effect.factors[0] for effect in found if len(effect.factors) == 1}
    levels = {name: own for name, own in main_factors(trials).items() if name in single}
    pairs = [effect for effect in found if effect.kind == "interaction" and effect.matches]
    compared = sum(math.comb(len(own), 2) for own in levels.values()) + len(pairs) // len(RESPONSES)
    on_per = {(effect.factors, effect.levels): abs(effect.effect) for effect in pairs if effect.response == "per"}
    for response in _ORDER:
        singles = [e for name in levels if (e := _worst_against_best(trials, name, levels[name], response))]
        one = max(singles, key=_size, default=None)
        # One failed cell gives several pairs the same interaction on health: of these, take the largest on PER.
        equal = [effect for effect in pairs if effect.response == response]
        pair = max(
            equal, key=lambda effect: (*_size(effect), on_per.get((effect.factors, effect.levels), 0.0)), default=None
        )
        if pair and _size(pair)[1] > max(_NONE, _PAIR * _alone(trials, pair)) and _size(pair) >= _size(one or pair):
            return pair, compared
        if one and _size(one)[1] > _NONE:
            return one, compared
    return None, compared


def _size(effect: Effect) -> tuple[bool, float]:
    """Return a key to sort effects by size. Effects over more than one seed are larger than others."""
    return effect.seeds > 1, float(abs(np.log(effect.effect) if effect.response == "steps" else effect.effect))


def _alone(trials: Trials, pair: Effect) -> float:
    """Return the larger effect of the two factors alone, at the levels and in the trials of the pair."""
    both, first, second, neither = _means(trials, _cells(pair), pair.response)
    return max(abs(both + first - second - neither), abs(both + second - first - neither)) / 2


def _worst_against_best(trials: Trials, name: str, levels: Sequence[Level], response: Response) -> Effect | None:
    """Return the effect of a factor's worst level against its best one, by the means of their trials."""
    sign = -1 if response == "healthy" else 1
    recorded = [
        [v for t in trials.trials if t.factors.get(name) == level and not math.isnan(v := t.response(response))]
        for level in levels
    ]
    if not all(recorded):
        return None
    harms = [sign * float(np.mean(values)) for values in recorded]
    places = [[i for i, value in enumerate(harms) if value == end] for end in (min(harms), max(harms))]
    best, worst = min(product(*places), key=lambda pair: abs(pair[0] - pair[1]))  # of equals, the nearest
    effect = next(e for e in difference_between(trials, name, levels[best], levels[worst]) if e.response == response)
    return effect if best != worst and effect.matches else None


def _single(trials: Trials, effect: Effect) -> str:
    (name,), ((best, worst),) = effect.factors, effect.levels
    at = f"at {short_name(name)} {level_text(worst)} instead of {level_text(best)}"
    at += f" (which also changes {names_text(effect.tied)})" if effect.tied else ""
    if effect.response == "healthy":
        after, before = _means(trials, [{name: worst}, {name: best}], "healthy")
        shares = f"{after:.0%} of the trials are healthy instead of {before:.0%}"
        return f"{at}, all else equal, {shares}: {_size_text(effect)}."
    return f"{at}, all else equal, {_words(trials, effect.response)} changes by {_size_text(effect)}."


def _pair(trials: Trials, effect: Effect) -> str:
    (a, b), ((a1, a2), (b1, b2)) = effect.factors, effect.levels
    step = f"the change from {short_name(a)} {level_text(a1)} to {level_text(a2)}"
    low, high = (f"{short_name(b)} {level_text(level)}" for level in (b1, b2))
    if effect.response == "healthy":
        end2, end1, start2, start1 = _means(trials, _cells(effect), "healthy")
        return (
            f"{step} moves the healthy share from {start1:.0%} to {end1:.0%} at {low}, "
            f"and from {start2:.0%} to {end2:.0%} at {high}: the difference is {_size_text(effect)}."
        )
    what = _words(trials, effect.response)
    return f"{step} changes {what} by a further {_size_text(effect)} at {high}, compared with {low}."


def _cells(pair: Effect) -> list[Cell]:
    (a, b), (a_levels, b_levels) = pair.factors, pair.levels
    return interaction_cells(a, a_levels, b, b_levels)[0]


def _means(trials: Trials, cells: Sequence[Cell], response: Response) -> list[float]:
    """Return the mean of a response in each cell, over the trials that are matched."""
    matches = [[trial.response(response) for trial in own] for _, own in match(trials, cells).matches]
    recorded = [own for own in matches if not math.isnan(sum(own))]
    return [float(np.mean([own[place] for own in recorded])) for place in range(len(cells))]


def _words(trials: Trials, response: Response) -> str:
    return _WORDS[response].format(metric=trials.metric)


def _size_text(effect: Effect) -> str:
    return effect_text(effect) + (" (95 % interval)" if effect.seeds > 1 else "")


def _why_no_effect(trials: Trials, found: Sequence[Effect]) -> str:
    if len(trials.trials) == 1:
        return "There is only one trial, and nothing to compare it with."
    if not trials.factors:
        return "The trials differ only in their seed, so there is no effect to report."
    factors = names_text(main_factors(trials))
    if any(effect.matches for effect in found):
        what = ["to health", *(f"to {_words(trials, r)}" for r in ("steps", "per") if trials.has(r))]
        parts = f"{', '.join(what[:-1])}, or {what[-1]}" if len(what) > 1 else what[0]
        return f"Changing {factors} made no difference {parts}."
    same = "of the same seed " if any(trial.seed is not None for trial in trials.trials) else ""
    return f"No two trials {same}differ in one factor only, so the effect of {factors} is not known."


def _confidence(effect: Effect | None, compared: int, rulings: Sequence[Ruling], *, seeds_known: bool = True) -> str:
    if effect is None:
        sure = ""
    elif effect.seeds == 1 and not seeds_known:
        sure = "the seeds of these trials are not known, so an effect cannot be separated from chance"
    elif effect.seeds == 1:
        sure = "this is based on 1 seed, which cannot separate an effect from chance"
    else:
        matched = "pair" if effect.kind == "difference" else "quadruple"
        least = f", the smallest that {effect.seeds} seeds can give" if effect.p <= 2 / 2**effect.seeds > 0.01 else ""
        chosen = f", not corrected for being the largest of {compared} effects" if compared > 1 else ""
        sure = f"this is based on {counted(effect.matches, matched)} of trials with {counted(effect.seeds, 'seed')}"
        sure += f" ({effect.test}: {p_text(effect.p)}{least}{chosen})"
    claims = _claims_text(rulings)
    return _capital(f"{sure}; {claims}." if sure else f"{claims}.")


def _claims_text(rulings: Sequence[Ruling]) -> str:
    """`of 3 claims, 1 confirmed, 0 refuted and 2 inconclusive`."""
    counts = Counter(ruling.ruling for ruling in rulings)
    not_run = sum(not ruling.seeds for ruling in rulings)
    if not rulings:
        return "no claim was stated beforehand"
    if not_run == len(rulings):
        return f"none of the {counted(not_run, 'claim')} stated beforehand is about these trials"
    parts = [f"{counts[ruling]} {ruling}" for ruling in ("confirmed", "refuted", "inconclusive")]
    text = f"of {counted(len(rulings), 'claim')}, {listed(parts)}"
    return f"{text}, {not_run} of them because their trials were not run" if not_run else text


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
