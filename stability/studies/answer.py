"""The answer of a study, in three sentences made from its trials."""

from collections import Counter
from collections.abc import Sequence
from itertools import product

import numpy as np

from stability.config import short_name
from stability.studies.claims import Ruling
from stability.studies.effects import Effect, Response, difference_between, interaction, main_factors, match
from stability.studies.trials import Level, Trials
from stability.studies.words import counts_text, level_text, listed, names_text, p_text, seeds_text, value_text

_PAIR = 1.5  # of a factor's own effect: where the two just have to come together, the interaction is twice that
_ORDER: tuple[Response, ...] = ("healthy", "steps", "per")  # what matters most, first


def answer(
    trials: Trials, found: Sequence[Effect], rulings: Sequence[Ruling], *, unfinished: bool = False
) -> tuple[str, str, str]:
    """What made training unhealthy, how large that effect is, and how sure this is.

    `found` are the `effects` of the trials. The effect is the largest on `healthy`; where nothing has any, on the steps
    on the plateau, then on PER. A pair of factors is named where its interaction is one and a half times what either
    does alone, or more. With trials that are `unfinished`, all is said so far.
    """
    so_far = "So far " if unfinished else ""
    total = len(trials.trials)
    if not total:
        return (
            "No trial is finished yet, so nothing can be said.",
            "There is no effect to tell.",
            _sure(None, 0, rulings),
        )
    strongest, compared = _strongest(trials, found)
    bad = [trial for trial in trials.trials if not trial.healthy]
    if not bad:
        first = (
            f"{so_far}all {total} trials are healthy ({counts_text(trials.trials)}): nothing made training unhealthy"
        )
    elif len(bad) == total:
        first = (
            f"{so_far}all {total} trials are unhealthy ({counts_text(bad)}): nothing that was varied made one healthy"
        )
    else:
        first = f"{so_far}{len(bad)} of {total} trials are unhealthy ({counts_text(bad)})"
    if strongest is None:
        return _capital(f"{first}."), _why_none(trials), _sure(None, compared, rulings)
    subject = names_text(strongest.factors)
    together = "the pair of " if strongest.kind == "interaction" else ""
    if strongest.response == "healthy":
        first += f", and what decides that most is {together}{subject}."
    else:
        but = "" if not bad or len(bad) == total else ", which goes with no factor"
        what = "how long the blank plateau lasts" if strongest.response == "steps" else "the final PER"
        first += f"{but}; what changes {what} most is {together}{subject}."
    how_large = _pair(trials, strongest) if strongest.kind == "interaction" else _single(strongest, trials)
    return _capital(first), _capital(how_large), _sure(strongest, compared, rulings)


def _strongest(trials: Trials, found: Sequence[Effect]) -> tuple[Effect | None, int]:
    """The effect to tell, in the direction that harms, and of how many it was chosen."""
    compared = sum(e.response == "healthy" and e.matches > 0 for e in found if not e.kind.startswith("trend"))
    factors = dict.fromkeys(e.factors[0] for e in found if len(e.factors) == 1)
    levels = {name: list_ for name, list_ in main_factors(trials).items() if name in factors}
    for response in _ORDER:
        singles = [e for name in levels if (e := _worst_against_best(trials, name, levels[name], response))]
        pairs = [e for e in found if e.kind == "interaction" and e.response == response and e.matches]
        single, pair = max(singles, key=_size, default=None), max(pairs, key=_size, default=None)
        alone = max((_size(e)[1] for e in singles if pair and e.factors[0] in pair.factors), default=0.0)
        if pair and _size(pair)[1] > max(_PAIR * alone, 1e-9) and (not single or _size(pair) > _size(single)):
            return pair, compared
        if single and _size(single)[1] > 1e-9:
            return single, compared
    return None, compared


def _size(effect: Effect) -> tuple[bool, float]:
    """Larger for what more than one seed tells, and then for the larger effect."""
    return effect.seeds > 1, float(abs(np.log(effect.effect) if effect.response == "steps" else effect.effect))


def _worst_against_best(trials: Trials, name: str, levels: Sequence[Level], response: Response) -> Effect | None:
    """The effect of a factor's worst level against its best one, both by the mean of their trials."""

    def harm(level: Level) -> float:
        own = [trial for trial in trials.trials if trial.factors.get(name) == level]
        if response == "steps":
            return float(np.mean([np.log(t.steps) for t in own]))
        return float(np.mean([t.per if response == "per" else not t.healthy for t in own]))

    harms = [harm(level) for level in levels]
    places = [[i for i, value in enumerate(harms) if value == end] for end in (min(harms), max(harms))]
    i, k = min(product(*places), key=lambda pair: abs(pair[0] - pair[1]))  # of equals, those next to each other
    best, worst = levels[i], levels[k]
    if best == worst:
        return None
    effect = next(e for e in difference_between(trials, name, best, worst) if e.response == response)
    return effect if effect.matches else None


def _single(effect: Effect, trials: Trials) -> str:
    (name,), ((best, worst),) = effect.factors, effect.levels
    at = f"at {short_name(name)} {level_text(worst)} instead of {level_text(best)}"
    along = (
        f" ({names_text(effect.tied)} {'change' if len(effect.tied) > 1 else 'changes'} along)" if effect.tied else ""
    )
    size = value_text(effect.response, effect.effect, effect.low, effect.high)
    if effect.response == "healthy":
        (before,), (after,) = (_shares(trials, [{name: level}, {name: other}])[:1]
                               for level, other in ((best, worst), (worst, best)))  # fmt: skip
        return f"{at}{along}, {after:.0%} instead of {before:.0%} are healthy, all else alike: {size}, at 95 %."
    what = "the blank plateau lasts" if effect.response == "steps" else "the final PER differs by"
    return f"{at}{along}, {what} {size}, at 95 %, all else alike."


def _pair(trials: Trials, effect: Effect) -> str:
    (a, b), ((a1, a2), (b1, b2)) = effect.factors, effect.levels
    cells, _ = interaction(a, (a1, a2), b, (b1, b2))
    size = value_text(effect.response, effect.effect, effect.low, effect.high)
    step = f"going from {short_name(a)} {level_text(a1)} to {level_text(a2)}"
    low, high = (f"{short_name(b)} {level_text(level)}" for level in (b1, b2))
    if effect.response == "healthy":
        end2, end1, start2, start1 = _shares(trials, cells)
        return (
            f"{step} takes the healthy share from {start1:.0%} to {end1:.0%} at {low}, "
            f"and from {start2:.0%} to {end2:.0%} at {high}: the two together make {size}, at 95 %."
        )
    what = "the steps on the blank plateau" if effect.response == "steps" else "PER"
    return f"{step} changes {what} at {high} by {size}, at 95 %, against what it does at {low}."


def _shares(trials: Trials, cells: Sequence[dict[str, Level]]) -> list[float]:
    """The share of healthy trials of each cell, among the matches that the effect is made of."""
    matches = match(trials.trials, cells).matches
    return [float(np.mean([found[place].healthy for _, found in matches])) for place in range(len(cells))]


def _why_none(trials: Trials) -> str:
    if len(trials.trials) == 1:
        return "One trial has nothing to be compared with, so there is no effect to tell."
    if not trials.factors:
        return "They differ in nothing but their seed, so there is no effect to tell."
    factors = names_text(main_factors(trials))
    return (
        f"Of {factors} no effect can be told: no two trials of a seed differ in one factor only, or it changed nothing."
    )


def _sure(effect: Effect | None, compared: int, rulings: Sequence[Ruling]) -> str:
    if effect is None:
        sure = ""
    elif effect.seeds == 1:
        sure = "that rests on 1 seed, which tells nothing of chance"
    else:
        matched = "pairs" if effect.kind == "difference" else "foursomes"
        least = f", the least that {effect.seeds} seeds can give" if effect.p <= 2 / 2**effect.seeds > 0.01 else ""
        chosen = f", not corrected for being the largest of {compared} effects" if compared > 1 else ""
        sure = f"that rests on {effect.matches} {matched} of {seeds_text(effect.seeds)}"
        sure += f" ({effect.test}: {p_text(effect.p)}{least}{chosen})"
    counts = Counter(ruling.ruling for ruling in rulings)
    not_run = sum(not ruling.seeds for ruling in rulings)
    claims = "no claim was stated beforehand"
    if rulings:
        parts = [f"{counts[ruling]} {ruling}" for ruling in ("confirmed", "refuted", "inconclusive")]
        claims = f"of {len(rulings)} claims, {listed(parts)}"
        claims += f", {not_run} of these for want of trials" if not_run else ""
    return _capital(f"{sure}; {claims}." if sure else f"{claims}.")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
