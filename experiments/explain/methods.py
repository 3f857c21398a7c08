"""Our method, and those that it is compared with. Each gets a pair and a way to train, and names the causes.

| method | what it does |
|---|---|
| explain | ours |
| factorial | trains all mixtures with 5 seeds; causes are the smallest that fail more often than the middle rate |
| effects | the same trials; causes are differences whose main effect is significant (Student's t, Holm at 5 %) |
| one at a time | gives HEALTHY each of FAILED's values alone, with 5 seeds; causes are those that fail in most |
| ddmin | Zeller's delta debugging, with one seed for each mixture; and with the majority of 5 |
| fANOVA, PED-ANOVA | 200 random mixtures in Optuna; causes are differences with an importance above 1 / k |

The last four name differences, not sets: each is counted as a cause alone, except that ddmin's set is one cause.
"""

from collections.abc import Callable
from itertools import combinations
from typing import NamedTuple

import numpy as np
from scipy import stats

from experiments.explain.pairs import Pair
from stability.analysis.beliefs import Job
from stability.analysis.explanation import explain as explain_pair
from stability.analysis.inference import holm

Cause = frozenset[str]

SEEDS = 5
_DRAWN = 200
_MOST = 2000  # trials of ours on a pair


class Answer(NamedTuple):
    """What a method says of a pair.

    Attributes:
        causes: The sufficient sets.
        trials: How many trials it made.
        sure: Whether it claims to be right.
    """

    causes: frozenset[Cause]
    trials: int
    sure: bool = True


class _Trials:
    """Trains mixtures of a pair, each seed once, and counts."""

    def __init__(self, pair: Pair) -> None:
        self.pair, self.done = pair, dict[tuple[Cause, int], bool]()

    def fails(self, failed: Cause, seed: int) -> bool:
        key = failed, seed
        if key not in self.done:
            self.done[key] = self.pair.fails(failed, seed)
        return self.done[key]

    def rate(self, failed: Cause, seeds: int = SEEDS) -> float:
        self.pair.train((failed, seed) for seed in range(seeds))
        return sum(self.fails(failed, seed) for seed in range(seeds)) / seeds


def explain(pair: Pair) -> Answer:
    """Ours. What is not confirmed when it ends is no answer."""
    outcomes: dict[Job, bool | None] = {}
    while (found := explain_pair(pair.differences, outcomes)).needed and len(outcomes) < _MOST:
        pair.train((job.mixture.failed, job.seed) for job in found.needed)
        outcomes |= {job: pair.fails(job.mixture.failed, job.seed) for job in found.needed}
    return Answer(frozenset(found.sufficient) if found.confirmed else frozenset(), len(outcomes), found.confirmed)


def factorial(pair: Pair) -> Answer:
    """All mixtures: the smallest that fail."""
    trials = _Trials(pair)
    subsets = [frozenset(c) for size in range(len(pair.names) + 1) for c in combinations(pair.names, size)]
    rates = {subset: trials.rate(subset) for subset in subsets}
    middle = (rates[subsets[-1]] + rates[subsets[0]]) / 2
    causes: list[Cause] = []
    for subset in subsets:  # the small ones first
        if rates[subset] > middle and not any(cause <= subset for cause in causes):
            causes.append(subset)
    return Answer(frozenset(causes), len(trials.done))


def effects(pair: Pair) -> Answer:
    """All mixtures: the differences with a significant main effect."""
    count = len(pair.names)
    cells = np.arange(2**count)
    has = (cells[:, None] >> np.arange(count)) & 1
    mixtures = [frozenset(name for name, bit in zip(pair.names, row, strict=True) if bit) for row in has]
    failed = np.array([[pair.fails(mixture, seed) for seed in range(SEEDS)] for mixture in mixtures], float)
    means = np.stack([failed[has[:, i] == 1].mean(0) - failed[has[:, i] == 0].mean(0) for i in range(count)])
    spread = means.std(1, ddof=1)
    t = means.mean(1) * SEEDS**0.5 / np.maximum(spread, 1e-9)  # 0 without an effect, huge if all seeds have the same
    p = holm([float(value) for value in stats.t.sf(t, SEEDS - 1)])
    return Answer(frozenset(frozenset({n}) for n, own in zip(pair.names, p, strict=True) if own <= 0.05), failed.size)


def one_at_a_time(pair: Pair) -> Answer:
    """HEALTHY with each of FAILED's values alone."""
    trials = _Trials(pair)
    middle = (trials.rate(frozenset(pair.names)) + trials.rate(frozenset())) / 2
    causes = frozenset(frozenset({name}) for name in pair.names if trials.rate(frozenset({name})) > middle)
    return Answer(causes, len(trials.done))


def ddmin(pair: Pair, seeds: int = 1) -> Answer:
    """Delta debugging: a smallest set of FAILED's values that fails."""
    trials = _Trials(pair)

    def test(names: list[str]) -> bool:
        return trials.rate(frozenset(names), seeds) > 0.5 if seeds > 1 else trials.fails(frozenset(names), 0)

    left, parts = [*pair.names], 2
    while len(left) > 1:
        chunks = [[*chunk] for chunk in np.array_split(left, parts)]
        rests = [[name for name in left if name not in chunk] for chunk in chunks]
        if (small := next((chunk for chunk in chunks if test(chunk)), None)) is not None:
            left, parts = small, 2
        elif (rest := next((rest for rest in rests if test(rest)), None)) is not None:
            left, parts = rest, max(parts - 1, 2)
        elif parts < len(left):
            parts = min(len(left), 2 * parts)
        else:
            break
    return Answer(frozenset({frozenset(left)}), len(trials.done))


def ddmin_majority(pair: Pair) -> Answer:
    """Delta debugging with the majority of seeds."""
    return ddmin(pair, SEEDS)


def _importances(pair: Pair, name: str) -> Answer:
    import optuna  # late: it takes a while

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=pair.number))

    def objective(trial: optuna.Trial) -> float:
        failed = frozenset(n for n in pair.names if trial.suggest_categorical(n, ["failed", "healthy"]) == "failed")
        return float(pair.fails(failed, trial.number))

    study.optimize(objective, _DRAWN)
    evaluator = getattr(optuna.importance, name)()
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    causes = frozenset(frozenset({name}) for name, share in shares.items() if share > 1 / len(pair.names))
    return Answer(causes, _DRAWN)


def fanova(pair: Pair) -> Answer:
    """Optuna's fANOVA importances."""
    return _importances(pair, "FanovaImportanceEvaluator")


def ped_anova(pair: Pair) -> Answer:
    """Optuna's PED-ANOVA importances."""
    return _importances(pair, "PedAnovaImportanceEvaluator")


METHODS: dict[str, Callable[[Pair], Answer]] = {
    "explain": explain,
    "factorial": factorial,
    "effects": effects,
    "one at a time": one_at_a_time,
    "ddmin, 1 seed": ddmin,
    "ddmin, 5 seeds": ddmin_majority,
    "fANOVA": fanova,
    "PED-ANOVA": ped_anova,
}
