"""Claims: hypotheses that are stated in YAML before the runs.

After the runs, `rulings.py` compares each claim with the trials. The result is the claim's **ruling**: confirmed,
refuted, or inconclusive.

A file of claims is a list. Each claim looks like this:

    - id: noise                               # a name of its own
      claim: With weak noise the official settings collapse.      # in words
      source: diagnosis, Test 2               # where it is stated
      budget: 10000                           # steps of the official run; the model's time scale converts them
      scale: {model: small, data: synthetic}  # options of conf/model and conf/data; or a list of such scales
      where: {optimizer.epsilon: 0.1}         # the trials that it is about; all of them, if left out
      compare: {aug.white_noise_std: [1.0, 0.25]}
      response: healthy
      expect: lower

A claim is ruled on only with trials of its budget and of one of its scales, and at each scale apart. Without `budget`
and `scale`, it is about trials of any.

`compare` and `expect` go together:

| compare | expect | meaning |
|---|---|---|
| `{FACTOR: [A, B]}`, or a list of two cells | `lower`, `{lower: 0.3}`, `higher` | the second against the first |
| the same | `{same: 0.05}` | they differ by less than the margin |
| `{FACTOR: [A, B, C]}`, or a list of cells | `rising`, `falling` | each beyond the one before |
| two factors with two levels each | `lower`, `higher` | the difference of differences, as in `effects.py` |
| nothing | `{all: X}`, `{most: X}` | every trial, or the trials of more than half of the seeds |

Without a `response`, X is an outcome or a list of outcomes. With a `response`, X is a range of numbers `[from, to]`;
null means no limit. The responses to compare are `healthy`, `per`, `steps` and `norm_spike`. The last two are ratios:
their margins are such as `{higher: 2}` for at least twice. X may also be about `largest_norm`, `phonemes` and `loss`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, get_args

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError  # type: ignore[import-untyped]

from stability.analysis.effects import RATIOS, RESPONSES
from stability.analysis.levels import Level
from stability.analysis.matching import Cell, interaction_cells
from stability.config.hydra import conf_folder, scale_settings, scaled
from stability.core.errors import StabilityError
from stability.core.text import counted
from stability.diagnosis.finding import Outcome

Verb = Literal["lower", "higher", "same", "rising", "falling", "all", "most"]

_KEYS = ("id", "claim", "source", "budget", "scale", "where", "compare", "response", "expect")
_OUTCOMES: tuple[str, ...] = get_args(Outcome)
_MEASURED = (*RESPONSES, "largest_norm", "phonemes", "loss")


@dataclass(frozen=True)
class Claim:
    """A claim, as a file states it.

    Attributes:
        id: Its name in the file.
        claim: The claim in words.
        source: The document or person that makes it.
        where: The levels of the trials that it is about.
        cells: The cells to compare; none for `all` and `most`.
        weights: The weight of each cell in an interaction; empty if each cell is compared with the next.
        response: The response that is compared, or that all or most trials must have; or `outcome`.
        verb: What is expected.
        margin: By how much; of ratios, a difference of logarithms.
        accepted: For `all` and `most`, the outcomes, or the ends of the range of numbers, that are expected.
        scales: {in words: settings} of each budget and scale that it is about; none if it is about any.
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
    scales: Mapping[str, Cell] = field(default_factory=dict)


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
    """Read a file of claims.

    Raises:
        StabilityError: The file cannot be read, or a claim in it is wrong. The message says what is wrong.
    """
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
        except _InvalidClaim as what:
            raise StabilityError(f"{path}, claim {name}: {what}") from None
    ids = [claim.id for claim in claims]
    if twice := {name for name in ids if ids.count(name) > 1}:
        raise StabilityError(f"{path}: more than one claim has the id {', '.join(sorted(twice))}.")
    return claims


class _InvalidClaim(Exception):
    """A claim is wrong; the message says why."""


def _claim(item: Any) -> Claim:
    if not isinstance(item, dict):
        raise _InvalidClaim(f"give {', '.join(_KEYS)}.")
    if unknown := [str(key) for key in item if key not in _KEYS]:
        raise _InvalidClaim(f"there is no {', '.join(unknown)}; there are {', '.join(_KEYS)}.")
    if missing := [key for key in ("id", "claim", "source", "expect") if item.get(key) is None]:
        raise _InvalidClaim(f"give {', '.join(missing)}.")
    where = item.get("where") or {}
    if not isinstance(where, dict):
        raise _InvalidClaim("where must be {FACTOR: LEVEL, …}.")
    response = item.get("response")
    if response is not None and response not in _MEASURED:
        raise _InvalidClaim(f"there is no response {response}; there are {', '.join(_MEASURED)}.")
    verb, value = _expected(item["expect"])
    cells, weights = _cells(item.get("compare"))
    if any(a == b for a, b in combinations(cells, 2)):
        raise _InvalidClaim("it compares a cell with itself.")
    stated: dict[str, Any] = {k: str(item[k]) for k in ("id", "claim", "source")}
    stated["scales"] = _scales(item.get("budget"), item.get("scale"))
    stated |= {"where": {str(name): _level(level) for name, level in where.items()}, "cells": cells, "weights": weights}
    if verb in ("all", "most"):
        if cells:
            raise _InvalidClaim(f"{verb} is about all trials in `where`: leave compare out.")
        return Claim(**stated, response=response or "outcome", verb=verb, accepted=_accepted(value, response))
    if not cells:
        raise _InvalidClaim(f"{verb} needs compare: {{FACTOR: [FROM, TO]}}, or a list of cells.")
    if response not in RESPONSES:
        raise _InvalidClaim(f"compare needs a response: {', '.join(RESPONSES)}.")
    if weights and verb not in ("lower", "higher"):
        raise _InvalidClaim("for two factors, expect lower or higher.")
    if not weights and len(cells) > 2 and verb not in ("rising", "falling"):
        raise _InvalidClaim(f"for {len(cells)} cells, expect rising or falling.")
    return Claim(**stated, response=response, verb=verb, margin=_margin(verb, value, response))


def _scales(budget: Any, scale: Any) -> dict[str, Cell]:
    if budget is None and scale is None:
        return {}
    if not isinstance(budget, int) or isinstance(budget, bool) or budget < 1:
        raise _InvalidClaim(f"the budget is {budget}: with a scale, give a number of steps of the official run.")
    found: dict[str, Cell] = {}
    for one in scale if isinstance(scale, list) else [scale]:
        if not isinstance(one, dict) or {*one} != {"model", "data"}:
            raise _InvalidClaim(
                f"the scale is {one}: with a budget, give {{model: NAME, data: NAME}} or a list of such."
            )
        settings = _settings(str(one["model"]), str(one["data"]))
        steps = scaled(budget, settings["model.time_scale"])
        found[f"{counted(steps, 'step')} with model={one['model']} data={one['data']}"] = {"steps": steps, **settings}
    return found


@cache
def _settings(model: str, data: str) -> dict[str, Any]:
    try:
        return scale_settings(model, data)
    except StabilityError as error:
        raise _InvalidClaim(str(error)) from None


def _expected(expect: Any) -> tuple[Verb, Any]:
    verb, value = next(iter(expect.items())) if isinstance(expect, dict) and len(expect) == 1 else (expect, None)
    for known in get_args(Verb):
        if verb == known:
            return known, value
    raise _InvalidClaim(f"expect {expect} is none of {', '.join(get_args(Verb))}, alone or as {{lower: MARGIN}}.")


def _cells(compare: Any) -> tuple[tuple[Cell, ...], tuple[float, ...]]:
    """The cells to compare, and their weights in an interaction."""
    if compare is None:
        return (), ()
    wrong = _InvalidClaim(
        "compare must be {FACTOR: [FROM, TO]}, two such factors, or a list of cells {FACTOR: LEVEL, …}."
    )
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
    cells, weights = interaction_cells(a, (a1, a2), b, (b1, b2))
    return tuple(cells), tuple(weights)


def _margin(verb: Verb, value: Any, response: str) -> float:
    if value is None and verb != "same":
        return 0.0
    if not isinstance(value, int | float) or isinstance(value, bool) or verb in ("rising", "falling"):
        raise _InvalidClaim(f"the margin of {verb} is {value}: give a number; rising and falling have no margin.")
    if response == "healthy":
        raise _InvalidClaim("healthy has no margin, since a few seeds cannot decide about it: expect lower or higher.")
    if response in RATIOS:
        if not value > 1:
            raise _InvalidClaim(f"the margin of {response} is a ratio and must be above 1, such as 2 for twice.")
        return math.log(value)
    if not value > 0:
        raise _InvalidClaim(f"the margin is {value}: it must be above 0.")
    return float(value)


def _accepted(value: Any, response: str | None) -> tuple[Any, ...]:
    if response is None:
        outcomes = value if isinstance(value, list) else [value]
        if not outcomes or any(outcome not in _OUTCOMES for outcome in outcomes):
            raise _InvalidClaim(f"{value} is no outcome; there are {', '.join(_OUTCOMES)}.")
        return tuple(outcomes)
    if not (
        isinstance(value, list) and len(value) == 2 and all(x is None or isinstance(x, int | float) for x in value)
    ):
        raise _InvalidClaim(f"{value} is no range of {response}: give [FROM, TO], with null for no limit.")
    return -math.inf if value[0] is None else value[0], math.inf if value[1] is None else value[1]


def _level(level: Any) -> Level:
    return tuple(level) if isinstance(level, list) else level
