"""How many trials an experiment may have that chooses its next trials by the outcomes so far."""

from collections.abc import Sequence
from dataclasses import dataclass

from stability.sweeps.plan import check_count


@dataclass(frozen=True)
class Budget:
    """The limits of an experiment, earlier runs of it included.

    Attributes:
        trials: It stops after so many trials; None for no limit.
        steps: It stops before its trials make more steps than this; None for no limit.
    """

    trials: int | None
    steps: int | None

    def __post_init__(self) -> None:
        check_count("hydra.sweeper.trials", self.trials, or_null=True)
        check_count("hydra.sweeper.steps", self.steps, or_null=True)

    def affords(self, planned: Sequence[int | None], made: Sequence[int]) -> int:
        """Return how many of the planned trials it affords, the first ones first.

        Args:
            planned: The steps of each; None if only the program of a command knows them: then, about as many as before.
            made: The steps that each trial so far has made.
        """
        count = len(planned) if self.trials is None else max(0, min(len(planned), self.trials - len(made)))
        if self.steps is None:
            return count
        left = self.steps - sum(made)
        for number, steps in enumerate(planned[:count]):
            left -= steps or sum(made) // max(1, len(made))
            if left < 0:
                return number
        return count
