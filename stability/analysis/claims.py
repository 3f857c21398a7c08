"""Claims, stated in YAML before the runs, and what the runs say of them.

A file of claims is a list, each of which says

    - id: noise                               # a name of its own
      claim: With weak noise the official settings collapse.      # in words
      source: diagnosis, Test 2               # who says it
      where: {optimizer.epsilon: 0.1}         # the trials that it is about; left out, all
      compare: {aug.white_noise_std: [1.0, 0.25]}
      response: healthy
      expect: lower

`compare` and `expect` go together:

| compare | expect | means |
|---|---|---|
| `{FACTOR: [A, B]}`, or a list of two cells | `lower`, `{lower: 0.3}`, `higher` | the second against the first |
| the same | `{same: 0.05}` | less than the margin apart |
| `{FACTOR: [A, B, C]}`, or a list of cells | `rising`, `falling` | each beyond the one before |
| two factors with two levels each | `lower`, `higher` | the difference of differences, as in `effects.py` |
| nothing | `{all: X}`, `{most: X}` | every trial, or the trials of more than half of the seeds |

X is an outcome, or a list of those that will do; with a `response`, the numbers `[from, to]` that will do, either null
for no limit. Responses to compare are `healthy`, `per`, `steps`, `norm_spike`, of which the last two are ratios, with
margins such as `{higher: 2}` for at least twice. X may also be about `largest_norm`, `phonemes` and `loss`.

A claim is confirmed, or refuted, if an exact test over the seeds says so at 5 % for all claims of the list together
(Holm); else it is inconclusive. `lower` is refuted by higher, `{lower: 0.3}` by what is not 0.3 lower, `all` by a
single trial. A margin is tested on the typical seed: what befalls one seed in twenty, few seeds do not show.
"""

import difflib
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from scipy import stats
from yaml import YAMLError  # type: ignore[import-untyped]

from stability.analysis.effects import (
    RATIOS,
    RESPONSES,
    Cell,
    Response,
    differences,
    in_unit,
    interaction,
    interval,
    match,
    named_test,
    sign_flip,
)
from stability.analysis.trials import Level, Trial, Trials, ordered
from stability.config.hydra import conf_folder
from stability.config.names import short_name
from stability.core.errors import StabilityError
from stability.diagnosis.finding import Outcome

Verb = Literal["lower", "higher", "same", "rising", "falling", "all", "most"]

_ALPHA, _POWER = 0.05, 0.8
_MOST_SEEDS = 1000  # beyond which more seeds are no advice
_KEYS = ("id", "claim", "source", "where", "compare", "response", "expect")
_OUTCOMES: tuple[str, ...] = get_args(Outcome)
_LOOKED_AT = (*RESPONSES, "largest_norm", "phonemes", "loss")


@dataclass(frozen=True)
class Claim:
    """A claim, as a file states it.

    `cells` are compared, with `weights` as an interaction and else each with the next; without cells `accepted`, which
    is outcomes or a range of numbers, is expected of trials. `margin` is a difference, of logarithms for ratios.
    """

    id: str
    claim: str
    source: str
    where: Cell
    cells: tuple[Cell, ...]
    weights: tuple[float, ...]
    response: str
    verb: Verb
    margin: float = 0.0
    accepted: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Ruling:
    """What the trials say of a claim, `because` in words.

    `effect` and its 95 % interval are as in `Effect`, of an order that of the last cell against the first; of `all`
    and `most`, the share of trials that fit, and Clopper and Pearson's interval of the share of seeds. `p` is
    two-sided, and `corrected` for the other claims. `seeds_needed` is about how many would decide an inconclusive claim
    if they were as those that there are; None where that cannot be said. `tied` changes along with what is compared.
    """

    claim: Claim
    ruling: Literal["confirmed", "refuted", "inconclusive"]
    because: str
    effect: float = math.nan
    low: float = math.nan
    high: float = math.nan
    seeds: int = 0
    matches: int = 0
    test: str = "none"
    p: float = 1.0
    corrected: float = 1.0
    seeds_needed: int | None = None
    tied: tuple[str, ...] = ()


def find_claims(name: str = "original") -> Path:
    """Find a file of claims.

    Args:
        name: A name in `conf/claims/`, such as `original`, or the path of a file.

    Returns:
        The path of the file.

    Raises:
        StabilityError: There is no such file.
    """
    known = conf_folder() / "claims"
    for path in (known / f"{name}.yaml", Path(name)):
        if path.is_file():
            return path
    names = ", ".join(sorted(path.stem for path in known.glob("*.yaml")))
    raise StabilityError(f"There are no claims {name}: give the path of a file, one of {names}, or none.")


def read_claims(path: Path) -> list[Claim]:
    """Read a file of claims. One that is not there or not understood raises `StabilityError` with what is wrong."""
    try:
        stated = OmegaConf.to_container(OmegaConf.load(path))
    except OSError as error:
        raise StabilityError(f"Cannot read the claims in {path}: {error.strerror or error}.") from None
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise StabilityError(f"{path} is not YAML: {error}") from None
    if not isinstance(stated, list) or not stated:
        raise StabilityError(f"{path} is no list of claims: begin each with `- id: NAME`.")
    claims = []
    for place, item in enumerate(stated, 1):
        name = item.get("id", f"number {place}") if isinstance(item, dict) else f"number {place}"
        try:
            claims.append(_claim(item))
        except _Unclear as what:
            raise StabilityError(f"{path}, claim {name}: {what}") from None
    ids = [claim.id for claim in claims]
    if twice := {name for name in ids if ids.count(name) > 1}:
        raise StabilityError(f"{path}: more than one claim has the id {', '.join(sorted(twice))}.")
    return claims


def rule(claims: Sequence[Claim], trials: Trials) -> list[Ruling]:
    """Rule on every claim, corrected for how many there are; one that the trials cannot tell is inconclusive."""
    found = [_evidence(claim, trials) for claim in claims]
    told = [evidence.p for evidence in found if evidence.seeds]
    corrected = iter(_holm(told))
    return [
        _ruling(claim, evidence, next(corrected) if evidence.seeds else 1.0, len(told))
        for claim, evidence in zip(claims, found, strict=True)
    ]


class _Unclear(Exception):
    """What is wrong with a claim."""


@dataclass(frozen=True)
class _Evidence:
    """One-sided p for and against a claim. Where it begins to hold, the mean of `decisive`, one a seed, is 0."""

    effect: float = math.nan
    low: float = math.nan
    high: float = math.nan
    seeds: int = 0
    matches: int = 0
    test: str = "none"
    supports: float = 1.0
    contradicts: float = 1.0
    decisive: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    trouble: str = ""
    tied: tuple[str, ...] = ()

    @property
    def p(self) -> float:
        return min(1.0, 2 * min(self.supports, self.contradicts))


def _claim(item: Any) -> Claim:
    if not isinstance(item, dict):
        raise _Unclear(f"it has to have {', '.join(_KEYS)}.")
    if unknown := [str(key) for key in item if key not in _KEYS]:
        raise _Unclear(f"there is no {', '.join(unknown)}; there are {', '.join(_KEYS)}.")
    if missing := [key for key in ("id", "claim", "source", "expect") if item.get(key) is None]:
        raise _Unclear(f"{', '.join(missing)} must be given.")
    where = item.get("where") or {}
    if not isinstance(where, dict):
        raise _Unclear("where has to be {FACTOR: LEVEL, …}.")
    response = item.get("response")
    if response is not None and response not in _LOOKED_AT:
        raise _Unclear(f"there is no response {response}; there are {', '.join(_LOOKED_AT)}.")
    verb, value = _expected(item["expect"])
    cells, weights = _cells(item.get("compare"))
    if any(a == b for a, b in combinations(cells, 2)):
        raise _Unclear("it compares a cell with itself.")
    stated: dict[str, Any] = {k: str(item[k]) for k in ("id", "claim", "source")}
    stated |= {"where": {str(name): _level(level) for name, level in where.items()}, "cells": cells, "weights": weights}
    if verb in ("all", "most"):
        if cells:
            raise _Unclear(f"{verb} is expected of the trials in `where`; compare nothing.")
        return Claim(**stated, response=response or "outcome", verb=verb, accepted=_accepted(value, response))
    if not cells:
        raise _Unclear(f"{verb} needs something to compare: {{FACTOR: [FROM, TO]}}, or a list of cells.")
    if response not in RESPONSES:
        raise _Unclear(f"what is compared needs a response: {', '.join(RESPONSES)}.")
    if weights and verb not in ("lower", "higher"):
        raise _Unclear("of two factors, lower or higher is expected.")
    if not weights and len(cells) > 2 and verb not in ("rising", "falling"):
        raise _Unclear(f"{len(cells)} cells are expected to be rising or falling.")
    return Claim(**stated, response=response, verb=verb, margin=_margin(verb, value, response))


def _expected(expect: Any) -> tuple[Verb, Any]:
    verb, value = next(iter(expect.items())) if isinstance(expect, dict) and len(expect) == 1 else (expect, None)
    for known in get_args(Verb):
        if verb == known:
            return known, value
    raise _Unclear(f"expect {expect} is none of {', '.join(get_args(Verb))}, alone or as {{lower: MARGIN}}.")


def _cells(compare: Any) -> tuple[tuple[Cell, ...], tuple[float, ...]]:
    """The cells to compare, and their weights in an interaction."""
    if compare is None:
        return (), ()
    wrong = _Unclear("compare has to be {FACTOR: [FROM, TO]}, two such factors, or a list of cells {FACTOR: LEVEL, …}.")
    if isinstance(compare, list):
        if len(compare) < 2 or not all(isinstance(cell, dict) and cell for cell in compare):
            raise wrong
        return tuple({str(name): _level(level) for name, level in cell.items()} for cell in compare), ()
    if not isinstance(compare, dict) or not all(isinstance(x, list) and len(x) > 1 for x in compare.values()):
        raise wrong
    factors = [(str(name), [_level(level) for level in levels]) for name, levels in compare.items()]
    if len(factors) == 1:
        name, levels = factors[0]
        return tuple({name: level} for level in levels), ()
    if len(factors) != 2 or any(len(levels) != 2 for _, levels in factors):
        raise wrong
    (a, (a1, a2)), (b, (b1, b2)) = factors
    cells, weights = interaction(a, (a1, a2), b, (b1, b2))
    return tuple(cells), tuple(weights)


def _margin(verb: Verb, value: Any, response: str) -> float:
    if value is None and verb != "same":
        return 0.0
    if not isinstance(value, int | float) or isinstance(value, bool) or verb in ("rising", "falling"):
        raise _Unclear(f"the margin of {verb} is {value}, where a number is needed, and rising and falling have none.")
    if response == "healthy":
        raise _Unclear("healthy has no margin, which shares of a few seeds could not tell: expect lower or higher.")
    if response in RATIOS:
        if not value > 1:
            raise _Unclear(f"the margin of {response} is a ratio and has to be above 1, such as 2 for twice.")
        return math.log(value)
    if not value > 0:
        raise _Unclear(f"the margin is {value}, and has to be above 0.")
    return float(value)


def _accepted(value: Any, response: str | None) -> tuple[Any, ...]:
    if response is None:
        outcomes = value if isinstance(value, list) else [value]
        if not outcomes or any(outcome not in _OUTCOMES for outcome in outcomes):
            raise _Unclear(f"{value} is no outcome; there are {', '.join(_OUTCOMES)}.")
        return tuple(outcomes)
    if not (
        isinstance(value, list) and len(value) == 2 and all(x is None or isinstance(x, int | float) for x in value)
    ):
        raise _Unclear(f"{value} is no range of {response}: give [FROM, TO], null for no limit.")
    return -math.inf if value[0] is None else value[0], math.inf if value[1] is None else value[1]


def _level(level: Any) -> Level:
    return tuple(level) if isinstance(level, list) else level


def _evidence(claim: Claim, trials: Trials) -> _Evidence:
    """What the trials say for and against the claim, or what the trouble is."""
    for cell in claim.cells or ({},):
        if trouble := _not_run({**claim.where, **cell}, trials):
            return _Evidence(trouble=trouble)
    inside = [t for t in trials.trials if all(t.factors.get(k) == v for k, v in claim.where.items())]
    return _comparison(claim, inside) if claim.cells else _shares(claim, inside)


def _not_run(cell: Cell, trials: Trials) -> str:
    """Why no trial is in the cell; nothing if there is one."""
    if any(all(t.factors.get(k) == v for k, v in cell.items()) for t in trials.trials):
        return ""
    known = list(dict.fromkeys(name for trial in trials.trials for name in trial.factors))
    lost = f" {len(trials.left_out)} folders were left out, such as {_first(trials)}" if trials.left_out else ""
    if not known:
        return "There is no trial." + lost
    for name, level in cell.items():
        if name not in known:
            dotted = {short_name(factor): factor for factor in known} | {factor: factor for factor in known}
            close = difflib.get_close_matches(name, dotted, 1, 0.0)
            return f"There is no factor {name}; the nearest is {dotted[close[0]]}."
        levels = ordered({trial.factors.get(name) for trial in trials.trials})
        if level not in levels:
            return f"No trial has {name}={level}; there are {', '.join(map(str, levels))}.{lost}"
    return f"No trial has {', '.join(f'{k}={v}' for k, v in cell.items())} together.{lost}"


def _first(trials: Trials) -> str:
    path, reason = trials.left_out[0]
    return f"{path.name} ({reason})."


def _comparison(claim: Claim, trials: Sequence[Trial]) -> _Evidence:
    response: Response = next(r for r in RESPONSES if r == claim.response)
    matched = match(trials, claim.cells)
    if not matched.matches:
        return _Evidence(trouble="No trials of the same seed differ only in what is compared.")
    last = len(claim.cells) - 1
    weights = claim.weights or (-1.0, *[0.0] * (last - 1), 1.0)
    sample = differences(matched, weights, response)
    low, high = interval(sample)
    effect, low, high = (in_unit(x, response) for x in (float(sample.means.mean()), low, high))
    seeds = len(sample.means)
    known = _Evidence(effect, low, high, seeds, sample.matches, named_test(seeds), tied=matched.tied)
    m = claim.margin
    if claim.verb == "same":
        below, above = sample.means - m, sample.means + m
        return replace(
            known,
            supports=max(_less(below), _less(-above)),
            contradicts=min(1.0, 2 * min(_less(-below), _less(above))),
            decisive=below if below.mean() > -above.mean() else -above,
        )
    sign = 1.0 if claim.verb in ("lower", "falling") else -1.0
    if last == 1 or claim.weights:
        steps = [sign * sample.means + m]
    else:
        every = np.eye(last + 1)
        steps = [sign * differences(matched, every[i + 1] - every[i], response).means for i in range(last)]
    weakest = max(steps, key=lambda step: float(step.mean()))
    return replace(
        known,
        supports=max(map(_less, steps)),
        contradicts=min(1.0, len(steps) * min(_less(-step) for step in steps)),
        decisive=weakest,
    )


def _less(means: NDArray[np.float64]) -> float:
    return sign_flip(means, "less")


def _shares(claim: Claim, trials: Sequence[Trial]) -> _Evidence:
    """Of a claim about all or most trials: a seed is for it if more than half of its trials are."""
    if lacking := [t.name for t in trials if getattr(t, claim.response) != getattr(t, claim.response)]:
        return _Evidence(trouble=f"{len(lacking)} trials have no record of {claim.response}, such as {lacking[0]}.")
    by_seed: dict[int, list[bool]] = defaultdict(list)
    for trial in trials:
        value = getattr(trial, claim.response)
        if claim.response == "outcome":
            by_seed[trial.seed].append(value in claim.accepted)
        else:
            by_seed[trial.seed].append(claim.accepted[0] <= value <= claim.accepted[1])
    fits = [fit for seed in by_seed.values() for fit in seed]
    shares = np.array([np.mean(seed) for seed in by_seed.values()])
    n, good = len(shares), int((shares > 0.5).sum())
    ci = stats.binomtest(good, n).proportion_ci()
    supports, contradicts = (float(stats.binomtest(good, n, alternative=side).pvalue) for side in ("greater", "less"))
    if claim.verb == "all" and not all(fits):
        supports, contradicts = 1.0, 0.0
    return _Evidence(
        float(np.mean(fits)), float(ci.low), float(ci.high), n, len(fits), "binomial, exact", supports, contradicts,
        decisive=0.5 - shares,
    )  # fmt: skip


def _holm(p: Sequence[float]) -> list[float]:
    """Holm's correction for so many tests."""
    order = np.argsort(p)
    corrected = np.array(p)[order] * np.arange(len(p), 0, -1)
    result = np.empty(len(p))
    result[order] = np.minimum(1.0, np.maximum.accumulate(corrected))
    return [float(x) for x in result]


def _ruling(claim: Claim, seen: _Evidence, corrected: float, claims: int) -> Ruling:
    known = Ruling(
        claim, "inconclusive", seen.trouble, seen.effect, seen.low, seen.high, seen.seeds, seen.matches, seen.test,
        seen.p, corrected, tied=seen.tied,
    )  # fmt: skip
    if not seen.seeds:
        return known
    if corrected <= _ALPHA:
        if seen.supports < seen.contradicts:
            return replace(known, ruling="confirmed", because="The trials are as expected.")
        otherwise = "The trials say otherwise."
        because = f"{1 - seen.effect:.0%} of the trials are otherwise." if claim.verb == "all" else otherwise
        return replace(known, ruling="refuted", because=because)
    if not seen.decisive.any():
        return replace(known, because=f"In none of {seen.seeds} seeds does it make any difference.")
    needed = _seeds_needed(seen, _ALPHA / claims)
    because = "One seed tells nothing of chance." if seen.seeds == 1 else f"{seen.seeds} seeds do not decide it."
    if needed is None:
        because += f" More than {_MOST_SEEDS} would be needed: they hardly lean to either side."
    else:
        least = "at least " if seen.seeds == 1 else "about "
        because += f" It would take {least}{needed}, if they were as these."
    return replace(known, because=because, seeds_needed=needed)


def _seeds_needed(seen: _Evidence, alpha: float) -> int | None:
    """The seeds with which a test at `alpha` decides in four of five cases, by the spread that was seen."""
    least = max(seen.seeds + 1, math.ceil(math.log2(2 / alpha)))  # with n seeds, p is at least 2 / 2^n
    mean = float(np.abs(seen.decisive.mean()))
    spread = float(seen.decisive.std(ddof=1)) if seen.seeds > 1 else 0.0
    if spread <= 1e-9 * mean:
        return least if mean > 0 else None
    n = np.arange(least, _MOST_SEEDS + 1)
    power = stats.nct.sf(stats.t.isf(alpha / 2, n - 1), n - 1, mean / spread * np.sqrt(n))
    (enough,) = np.nonzero(power >= _POWER)
    return int(n[enough[0]]) if len(enough) else None
