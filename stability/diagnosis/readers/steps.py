"""The step since the start of the training, where a log counts the batches of each epoch from 0."""

from collections.abc import Collection

from stability.diagnosis.readers.runs import is_validation


class Steps:
    """Counts on where the batches of an epoch begin again.

    Attributes:
        epoch: The epoch that was seen last.
        last: The step that was seen last, for a validation that is logged without one.
    """

    def __init__(self) -> None:
        self.epoch: float | None = None
        self.last: int | None = None
        self._trained: int | None = None  # the last step with something other than a validation
        self._begins: dict[int, int] = {}  # where each epoch began
        self._offset = 0
        self._turned = False  # whether another epoch has begun since the last step
        self._full = False  # whether a progress bar has been full since then
        self._titles = set[str]()  # what was measured in training at the last step

    def see_epoch(self, epoch: float) -> None:
        """Follow the epochs. A smaller one is a resume, or another run if it is the first one."""
        if self.epoch is None or int(epoch) > int(self.epoch):
            self._turned = True
        elif int(epoch) < int(self.epoch):
            self._turned = False
            self._offset, self.last, self._trained = self._begins.get(int(epoch), 0), None, None
            if epoch <= min(self._begins, default=0):
                self._begins.clear()
        self.epoch = epoch

    def whole(self, step: int, titles: Collection[str] = (), total: int | None = None) -> int:
        """Return the step since the start of the training.

        Args:
            step: The step as the log counts it.
            titles: What was measured there.
            total: How many steps an epoch has, if the log says it.
        """
        training = [title for title in titles if not is_validation([title])]
        if titles and not training:
            self.last = max(step + self._offset, self.last or 0)
            return step + self._offset
        if self._trained is not None:
            before = self._trained - self._offset
            again = step == before and not self._titles.isdisjoint(training)
            if (self._turned and (step < before or again)) or (self._full and step < before):
                self._offset = max(self._trained + 1 - min(step, 1), self._offset + (total or 0))
        if self.epoch is not None:
            self._begins.setdefault(int(self.epoch), self._offset)
        if step + self._offset != self._trained:
            self._titles.clear()
        self._titles.update(training)
        self.last = self._trained = step + self._offset
        self._turned = self._full = False
        return self.last

    def end_epoch(self) -> None:
        """Count on from here if the next step is smaller: a progress bar is full."""
        self._full = True

    @property
    def last_in_epoch(self) -> int | None:
        """The last step as the log counts it."""
        return None if self._trained is None else self._trained - self._offset

    def new_values(self, values: dict[str, float]) -> dict[str, float]:
        """Return what was not measured yet at the last step. The rest are means over the epoch."""
        return {title: value for title, value in values.items() if is_validation([title]) or title not in self._titles}
