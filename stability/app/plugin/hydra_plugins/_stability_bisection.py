"""`hydra/sweeper=bisection` in somebody's own Hydra app: the largest healthy value of any number in it.

It is in this package because Hydra 1.3 takes sweepers from nowhere else.
"""

import math
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from stability.analysis.levels import is_number
from stability.app.jobs import Jobs
from stability.config.hydra import explain_error
from stability.core.errors import StabilityError
from stability.sweeps.bisection import BisectionSweeper, Limits

_DECADES = 4  # from the start to the lowest and to the highest value, unless these are given


class AppBisection(BisectionSweeper):
    """Find the largest healthy value of a setting for every combination of the other factors.

    Args:
        setting: The dotted name of the setting, whose values are numbers above 0. If its value is a whole number, only
            whole numbers are tried.
        start: The first value. None for that in the app's configuration.
        lowest: The lowest value to try. None for four decades below `start`, and at least 1 if it is a whole number.
        highest: The highest value to try. None for four decades above `start`.
        tolerance: A search ends when the upper end of its bracket is at most this many times the lower.
        params: Factors and their values, as overrides of the command line.
    """

    def __init__(
        self,
        setting: str | None,
        start: float | None,
        lowest: float | None,
        highest: float | None,
        tolerance: float,
        params: dict[str, str] | None = None,
    ) -> None:
        super().__init__(setting or "", start or 0, lowest or 0, highest or 0, tolerance, params)
        self._given = start, lowest, highest

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra passes, and read the value of the setting.

        Raises:
            StabilityError: The setting is not given, unknown or no number.
        """
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self._jobs = Jobs(config)
        if not self._setting:
            raise StabilityError("Which number is to be searched? Give it: hydra.sweeper.setting=optimizer.lr")
        value: Any = OmegaConf.select(config, self._setting)
        if not is_number(value):
            raise StabilityError(
                f"hydra.sweeper.setting={self._setting}: the app has no number of that name. Give the dotted name of "
                "one, such as optimizer.lr."
            )
        start, lowest, highest = self._given
        start = value if start is None else start
        if not is_number(start):
            raise StabilityError(f"hydra.sweeper.start={start}: give a number above 0.")
        whole = isinstance(value, int) and isinstance(start, int)
        span = 10.0**_DECADES
        self._limits = Limits(
            start=start,
            lowest=(max(1, math.ceil(start / span)) if whole else start / span) if lowest is None else lowest,
            highest=start * (int(span) if whole else span) if highest is None else highest,
            tolerance=self._limits.tolerance,
            whole=whole,
        )

    def _folder_of(self, overrides: list[str]) -> Path:
        try:
            return self._jobs.find(overrides).folder
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            raise StabilityError(explain_error(error)) from error

    def _trains_anew(self) -> bool:
        return False
