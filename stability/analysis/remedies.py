"""Which changes of settings may mend a failed training: from the cause and the evidence of its verdict.

A setting's role is known by its name, so this works for the settings of any program: `schedule.lr_max`, `settings.lr`
and `settings.optim.learning_rate` are all the learning rate. Every cause has the roles that bear on it, the likeliest
first. A role has a ladder of changes, the smallest first: the rate over 3, over 10, over 30. What the evidence rules
out is left out: if updates are a hundred times too small, a rate three times higher changes nothing.
"""

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stability.analysis.levels import Level, is_number, level_text
from stability.diagnosis.finding import THRESHOLDS
from stability.diagnosis.verdict import Verdict

Settings = Mapping[str, Level]

# The roles of settings, by the last part of their names.
_RATE = r"(lr|learning_rate)"
_ROLES: dict[str, str] = {
    "learning rate": rf"(peak_|base_|max_|initial_)?{_RATE}(_max|_peak)?(_day)?",
    "lowest rate": rf"(min_|final_|end_){_RATE}|{_RATE}_(min|final|end)(_day)?",
    "warm-up": rf"({_RATE}_|num_)?warm_?up(_steps|_epochs|_iters|_ratio|_fraction)?",
    "length of the decay": rf"({_RATE}_)?decay_(steps|epochs|iters)",
    "epsilon": r"(adam_|optimizer_)?(eps|epsilon)",
    "clip": r"(max_)?grad(ient)?_norm(_clip)?|(grad(ient)?_)?clip(ping)?(_val|_value|_norm|_grad|_grad_norm)?|max_norm",
    "weight decay": r"(weight_?decay|wd)(_day)?",
    "dropout": r"(\w+_)?dropout(_\w+)?",
    "noise": r"(\w+_)?noise(_std|_level|_scale)?",
    "reduction": r"(loss_|ctc_)?reduction",
    "precision": r"(d?type|precision|mixed_precision|amp|fp16|bf16)",
    "clip before unscaling": r"clip_before_unscale",
    "steps": r"(max_|num_|train_)?(train_)?(steps|epochs|iterations|iters)",
}
_COUNTS = ("warm-up", "length of the decay", "steps")  # roles whose whole numbers stay whole
_OTHERS = ("data", "tracking", "trainer", "diagnosis")  # groups whose settings have none of these roles

_SUM_OF = {"per_label_mean": "per_utterance_sum", "mean": "sum"}
_HALF = ("fp16", "float16", "half", "16", "16-mixed")  # names of float16
_WIDER: dict[str, tuple[Level, ...]] = {
    **dict.fromkeys(("fp16", "half"), ("bf16", "fp32")),
    "float16": ("bfloat16", "float32"),
    "16": ("bf16", 32),
    "16-mixed": ("bf16-mixed", 32),
}

# Causes that no setting mends.
_OF_THE_PROGRAM = {
    *("labels", "metric", "train_eval", "zero_loss", "no_gradient", "not_in_optimizer", "negative_loss", "loss"),
    *("too_few_readings", "validation_loss", "no validation", "no signals"),
}

_DIGITS = 3  # significant digits of a new value
_SHARE = 0.5  # of parameters or steps; from there on, epsilon dominates, or the clip makes the steps small
_TINY_RATE = 1e-4
_TINY_EPSILON = 1e-5  # below it, single parameters with small second moments may leap
_LATE = 3.0  # times the warm-up: what begins later is not for the lack of a longer one
_NO_STEPS = ("epochs", "ratio", "fraction")  # ends of names of warm-ups that are not given in steps
_FIRST_CLIP, _FIRST_WARMUP, _FIRST_RATIO = 1.0, 100, 0.1  # where there is none, and nothing was measured
_FIRST_RATE, _FIRST_EPSILON, _FIRST_DECAY, _FIRST_NOISE = 1e-3, 1e-8, 0.01, 0.2
_STRONG_DECAY = 0.3  # a weight decay from which on it is suspected, whatever was measured
_MORE_DROPOUT, _MOST_DROPOUT = 0.2, 0.7  # more than the most is suspected
_SMALL_UPDATE = THRESHOLDS["collapsed"]["small_update"]  # over the size of the weights, below which little changes
_MOST_RUNGS = 4  # of a ladder towards larger steps


@dataclass(frozen=True)
class Change:
    """A change of settings that may mend a training.

    Attributes:
        settings: The names of the settings, each with its new value.
        roles: What they are for.
        reason: Why it may help, in a clause.
        larger: Whether it makes the steps of the optimizer larger, or smaller; None if it does neither.
    """

    settings: tuple[tuple[str, Level], ...]
    roles: tuple[str, ...]
    reason: str
    larger: bool | None = None

    def __str__(self) -> str:
        """The settings, as they are typed on a command line."""
        return " ".join(f"{name}={level_text(value)}" for name, value in self.settings)


Ladder = Sequence[Change]


@dataclass(frozen=True)
class _Case:
    """A failed training: what is known of it, and its settings by their roles."""

    verdict: Verdict
    by_role: Mapping[str, Settings]
    typical_norm: float | None

    def number(self, evidence: str) -> float:
        """Return a number of the evidence; NaN if it was not measured."""
        value = self.verdict.evidence.get(evidence)
        return math.nan if value is None or isinstance(value, str) else value

    def numbers(self, role: str) -> dict[str, float]:
        """Return the settings of a role that are numbers above 0."""
        found = self.by_role.get(role, {})
        return {name: value for name, value in found.items() if is_number(value) and 0 < value < math.inf}

    def is_off(self, role: str) -> str | None:
        """Return the first setting of a role if it is there and off: null, 0 or infinite; None if not."""
        found = self.by_role.get(role, {})
        off = (n for n, v in found.items() if v is None or (is_number(v) and not 0 < v < math.inf))
        return None if self.numbers(role) else next(off, None)

    @property
    def epsilon_dominates(self) -> bool:
        return self.number("share of second-moment roots below epsilon") >= _SHARE

    @property
    def rate_is_tiny(self) -> bool:
        """Whether no epsilon makes the steps large enough: a step of Adam is hardly larger than the rate."""
        return max(self.numbers("learning rate").values(), default=math.inf) < _TINY_RATE

    @property
    def falls_early(self) -> bool:
        """Whether the rate has fallen to its end before half of the training."""
        lengths, whole = self.numbers("length of the decay"), self.numbers("steps")
        return bool(lengths and whole) and min(lengths.values()) < max(whole.values()) / 2

    @property
    def mostly_clipped(self) -> bool:
        return self.number("share of steps clipped") >= _SHARE


def remedies(verdict: Verdict, settings: Settings, typical_norm: float | None = None) -> tuple[Change, ...]:
    """Return the changes of single roles that may mend a failed training, in the order in which to try them.

    Args:
        verdict: Its verdict.
        settings: {dotted name: value} of the settings that can be changed.
        typical_norm: The gradient norm that was usual before it failed; None if that is not known.

    Returns:
        The changes; none if the fault is one that no setting mends, or if no setting has a role that bears on it.
    """
    if no_setting_mends(verdict):
        return ()
    case = _Case(verdict, _by_role(settings), typical_norm)
    likeliest, *others = [ladder for ladder in _ladders(case) if ladder] or [[]]
    # The two smallest changes of the likeliest role, then one of each other, then what is larger.
    ordered = [*likeliest[:2], *(one for ladder in others for one in ladder[:1]), *likeliest[2:]]
    ordered += [one for ladder in others for one in ladder[1:]]
    return tuple(one for one in ordered if any(settings[name] != value for name, value in one.settings))


def no_setting_mends(verdict: Verdict) -> bool:
    """Return whether the fault lies in the data, in the program or in what was recorded, and not in a setting."""
    return verdict.outcome == "bad_data" or verdict.cause in _OF_THE_PROGRAM


def role_of(name: str) -> str | None:
    """Return the role of the setting with this dotted name; None if its name tells none."""
    *groups, last = name.lower().replace("-", "_").split(".")
    if groups and groups[0] in _OTHERS:
        return None
    return next((role for role, pattern in _ROLES.items() if re.fullmatch(pattern, last)), None)


def _by_role(settings: Settings) -> dict[str, dict[str, Level]]:
    found: dict[str, dict[str, Level]] = {}
    for name, value in settings.items():
        if role := role_of(name):
            found.setdefault(role, {})[name] = value
    return found


def _ladders(case: _Case) -> Sequence[Ladder]:
    """The ladders of the roles that bear on the cause, the likeliest first."""
    match case.verdict.cause:
        case "rate_too_high" | "relapse":
            return _lower_rate(case), _clip(case), _longer_warmup(case), _larger_epsilon(case), _precision(case)
        case "bad_batch":
            return _clip(case), _lower_rate(case), _larger_epsilon(case), _precision(case)
        case "drift":
            return _lower_rate(case), _more_decay(case), _clip(case), _larger_epsilon(case)
        case "decay":
            return _less_decay(case), _lower_rate(case)
        case "step_too_small" if case.falls_early:
            return _later_decay(case), _higher_rate(case), _smaller_epsilon(case), _weaker_clip(case)
        case "step_too_small" if case.epsilon_dominates and case.rate_is_tiny:
            return _higher_rate(case), _smaller_epsilon(case), _sum_loss(case), _weaker_clip(case)
        case "step_too_small" if case.epsilon_dominates:
            return _smaller_epsilon(case), _sum_loss(case), _weaker_clip(case), _higher_rate(case)
        case "step_too_small":
            return _higher_rate(case), _weaker_clip(case), _sum_loss(case), _later_decay(case), _shorter_warmup(case)
        case "no_update":
            return _later_decay(case), _higher_rate(case), _smaller_epsilon(case), _precision(case)
        case "in_warmup":
            return _shorter_warmup(case), _longer(case), _higher_rate(case)
        case "overfitting":
            return _more_noise(case), _more_dropout(case), _more_decay(case), _lower_rate(case)
        case "precision" | "gradient":
            return _precision(case), _first_epsilon(case)
        case "no_information":
            return *_unusual(case), _either_rate(case), _less_noise(case), _larger_epsilon(case), _longer(case)
    if case.verdict.outcome in ("exploded", "degraded", "non_finite"):
        return _lower_rate(case), _clip(case), _longer_warmup(case), _larger_epsilon(case), _precision(case)
    return *_unusual(case), _either_rate(case), _smaller_epsilon(case), _clip(case), _longer(case)


def _unusual(case: _Case) -> Sequence[Ladder]:
    """Changes of settings whose values are suspicious, whatever the verdict says."""
    strong = any(value >= _STRONG_DECAY for value in case.numbers("weight decay").values())
    decays = [_less_decay(case) if strong else [], _later_decay(case) if case.falls_early else []]
    return *decays, _less_dropout(case), _weaker_clip(case), _precision(case)


def _lower_rate(case: _Case) -> Ladder:
    rates, lowest = case.numbers("learning rate"), case.numbers("lowest rate")

    def changed(factor: float) -> dict[str, float]:
        new = _scaled(rates, 1 / factor)
        # A lowest rate above the new one would turn the decay into a rise.
        above = {name: value for name, value in lowest.items() if new and value > min(new.values())}
        return new | _scaled(above, 1 / factor)

    smaller = (
        (changed(factor), f"updates are {factor:g} times smaller") for factor in (3, 10, 30, 100, 300, 1e3, 1e4, 1e5)
    )
    return _ladder("learning rate", smaller, larger=False)


def _higher_rate(case: _Case) -> Ladder:
    if off := case.is_off("learning rate"):
        values = (_FIRST_RATE * factor for factor in (1, 0.1, 10))
        return _ladder("learning rate", (({off: value}, "with a rate of 0 nothing changes") for value in values))
    rates = case.numbers("learning rate")
    by = _enough(case, (3, 10, 30, 100, 300, 1e3, 1e4, 1e5))
    return _ladder("learning rate", ((_scaled(rates, f), f"updates are {f:g} times larger") for f in by), larger=True)


def _either_rate(case: _Case) -> Ladder:
    """Both directions, the nearest first."""
    pairs = zip(_lower_rate(case), _higher_rate(case), strict=False)
    return [change for pair in pairs for change in pair]


def _smaller_epsilon(case: _Case) -> Ladder:
    epsilons = case.numbers("epsilon")
    if not case.epsilon_dominates and max(epsilons.values(), default=0) < _TINY_EPSILON:
        return []
    by = _enough(case, (10, 100, 1e3, 1e4, 1e6))
    reason = "epsilon dominates, and the smaller it is, the larger the steps"
    return _ladder("epsilon", ((_scaled(epsilons, 1 / f), reason) for f in by), larger=True)


def _larger_epsilon(case: _Case) -> Ladder:
    tiny = {name: value for name, value in case.numbers("epsilon").items() if value < _TINY_EPSILON}
    reason = "epsilon is tiny: parameters with small second moments may leap"
    return _ladder("epsilon", ((_scaled(tiny, f), reason) for f in (1e2, 1e4)), larger=False)


def _first_epsilon(case: _Case) -> Ladder:
    off = case.is_off("epsilon")
    return _ladder("epsilon", [({off: _FIRST_EPSILON} if off else {}, "without epsilon, a moment of 0 gives 0/0")])


def _clip(case: _Case) -> Ladder:
    """Clip at a typical norm, if nothing is clipped yet or far above it."""
    typical = case.typical_norm
    measured = typical is not None and 0 < typical < math.inf
    if off := case.is_off("clip"):
        value = _rounded(typical) if typical is not None and measured else _FIRST_CLIP
        why = "the usual gradient norm before it failed" if measured else "nothing is clipped"
        return _ladder("clip", [({off: value}, why), ({off: _rounded(value / 10)}, f"a tenth of it: {why}")])
    clips = case.numbers("clip")
    if typical is not None and measured:
        above = {name: _rounded(typical) for name, value in clips.items() if value > 2 * typical}
        return _ladder("clip", [(above, "the usual gradient norm before it failed")])
    loose = {} if case.mostly_clipped else clips
    return _ladder("clip", [(_scaled(loose, 0.1), "few steps are clipped")])


def _weaker_clip(case: _Case) -> Ladder:
    """Clip at larger norms, if most steps are clipped. Where epsilon is small, Adam's steps do not depend on it."""
    if not case.mostly_clipped or case.number("share of second-moment roots below epsilon") < _SHARE:
        return []
    by, clips = _enough(case, (10, 100, 1e3, 1e4)), case.numbers("clip")
    return _ladder("clip", ((_scaled(clips, f), "most steps are clipped") for f in by), larger=True)


def _longer_warmup(case: _Case) -> Ladder:
    """Three times and ten times longer, and not longer than half of the training."""
    if off := case.is_off("warm-up"):
        first = _FIRST_RATIO if off.endswith(("ratio", "fraction")) else _FIRST_WARMUP
        return _ladder("warm-up", [({off: first}, "there is no warm-up")], larger=False)
    warmups, onset = case.numbers("warm-up"), case.verdict.onset_step
    in_steps = {name: value for name, value in warmups.items() if not name.endswith(_NO_STEPS)}
    if onset is not None and in_steps and onset > _LATE * max(in_steps.values()):
        return []
    half = min(case.numbers("steps").values(), default=math.inf) / 2
    factors = [f for f in (3, 10) if all(value * f <= half for value in in_steps.values())]
    longer = ((_scaled(warmups, factor), "it failed soon after the warm-up") for factor in factors)
    return _ladder("warm-up", longer, larger=False)


def _shorter_warmup(case: _Case) -> Ladder:
    """A third and a tenth of it, or of the whole training if it is longer than that."""
    warmups, whole = case.numbers("warm-up"), case.numbers("steps")
    longest = max(whole.values(), default=math.inf)
    at_most = {n: v if n.endswith(_NO_STEPS) else min(v, longest) for n, v in warmups.items()}
    shorter = ((_scaled(at_most, 1 / f), "the rate is low for long") for f in (3, 10, 30))
    return _ladder("warm-up", shorter, larger=True)


def _later_decay(case: _Case) -> Ladder:
    """Three times later, if that is in the second half of the training, and at its end."""
    longest = max(case.numbers("steps").values(), default=math.inf)
    lengths = {name: value for name, value in case.numbers("length of the decay").items() if value < longest}
    soonest = 3 * min(lengths.values(), default=0)
    later = [_scaled(lengths, 3)] if longest == math.inf or longest / 2 < soonest < longest else []
    later += [dict.fromkeys(lengths, longest) if longest < math.inf else _scaled(lengths, 10)]
    return _ladder("length of the decay", ((values, "the rate falls later") for values in later), larger=True)


def _sum_loss(case: _Case) -> Ladder:
    means = {n: _SUM_OF[v] for n, v in case.by_role.get("reduction", {}).items() if v in _SUM_OF}
    return _ladder("reduction", [(means, "gradients of a sum per utterance are larger than those of a mean per label")])


def _less_decay(case: _Case) -> Ladder:
    decays = case.numbers("weight decay")
    weaker = [*(_scaled(decays, factor) for factor in (0.1, 0.01)), dict.fromkeys(decays, 0.0)]
    return _ladder("weight decay", ((values, "weights are decayed less") for values in weaker))


def _more_decay(case: _Case) -> Ladder:
    off = case.is_off("weight decay")
    decays = {off: _FIRST_DECAY} if off else _scaled(case.numbers("weight decay"), 10)
    return _ladder("weight decay", [(decays, "it holds the weights back")])


def _more_noise(case: _Case) -> Ladder:
    noises = case.numbers("noise")
    if off := case.is_off("noise"):
        return _ladder("noise", (({off: value}, "there is no noise") for value in (_FIRST_NOISE, 5 * _FIRST_NOISE)))
    return _ladder("noise", ((_scaled(noises, f), "more noise, less overfitting") for f in (2, 4)))


def _less_noise(case: _Case) -> Ladder:
    noises = case.numbers("noise")
    return _ladder("noise", ((_scaled(noises, 1 / f), "noise may hide what is to be learned") for f in (4, 16)))


def _more_dropout(case: _Case) -> Ladder:
    rates = {n: v for n, v in case.by_role.get("dropout", {}).items() if is_number(v) and 0 <= v < _MOST_DROPOUT}
    more = {name: _rounded(min(value + _MORE_DROPOUT, _MOST_DROPOUT)) for name, value in rates.items()}
    return _ladder("dropout", [(more, "more dropout, less overfitting")])


def _less_dropout(case: _Case) -> Ladder:
    high = {n: v for n, v in case.numbers("dropout").items() if v > _MOST_DROPOUT}
    less = (dict.fromkeys(high, value) for value in (_MOST_DROPOUT, _MOST_DROPOUT / 2))
    return _ladder("dropout", ((values, "so much dropout leaves little to learn from") for values in less))


def _precision(case: _Case) -> Ladder:
    early = {name: False for name, value in case.by_role.get("clip before unscaling", {}).items() if value is True}
    half = {n: v for n, v in case.by_role.get("precision", {}).items() if str(v) in _HALF}
    switches = {n: False for n, v in case.by_role.get("precision", {}).items() if v is True and not n.endswith("bf16")}
    ladder = [(early, "gradients are clipped before they are unscaled"), (switches, "without half precision")]
    wider = [({n: _WIDER[str(v)][rung] for n, v in half.items()}, "a range wider than that of fp16") for rung in (0, 1)]
    return _ladder("precision", [*ladder, *wider])


def _longer(case: _Case) -> Ladder:
    return _ladder("steps", [(_scaled(case.numbers("steps"), 2), "it may only need longer")])


def _enough(case: _Case, factors: Collection[float]) -> list[float]:
    """The factors that make the updates large enough, if their size is known."""
    size = case.number("size of an update over size of the weights")  # NaN if it is not
    enough = [factor for factor in factors if not size * factor < _SMALL_UPDATE]
    return enough[:_MOST_RUNGS] or [max(factors)]


def _ladder(role: str, rungs: Iterable[tuple[Mapping[str, Any], str]], larger: bool | None = None) -> Ladder:
    """The changes of a role; those without settings are left out."""
    return [Change(tuple(settings.items()), (role,), reason, larger) for settings, reason in rungs if settings]


def _scaled(values: Mapping[str, float], factor: float) -> dict[str, float]:
    def scaled(name: str, value: float) -> float:
        whole = isinstance(value, int) and role_of(name) in _COUNTS
        return max(1, round(value * factor)) if whole else _rounded(value * factor)

    return {name: scaled(name, value) for name, value in values.items()}


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
