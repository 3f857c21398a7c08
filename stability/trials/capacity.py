"""Counts the trials that fit into memory. Trains in micro-batches if the batch of a single trial does not fit."""

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from stability.core.errors import StabilityError
from stability.data.records import Dataset
from stability.engine.memory import free_memory, is_out_of_memory, peak_memory, reset_peak_memory
from stability.engine.stack import Stack

log = logging.getLogger(__name__)

_LARGEST_STACK = {"cpu": 8, "cuda": 64}  # trials, by device; larger stacks are no faster
_MEMORY_SHARE = 0.8  # of the free memory, for the trials
_Result = TypeVar("_Result")


class Capacity:
    """Measures the memory that one trial needs. Create it before the trial's first steps.

    Args:
        device: The device of the trial.
        dataset: The trial's data, part of which may be in the device's memory.
        recorder_bytes: The host's memory that the flight recorder of a trial takes.
    """

    def __init__(self, device: torch.device, dataset: Dataset, recorder_bytes: int) -> None:
        self._device, self._recorder_bytes = device, recorder_bytes
        self._data_bytes = dataset.gpu_bytes
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            self._used_before = reset_peak_memory()

    def trials(self, sharing: int) -> int:
        """Count the trials that fit into memory. Call it after the trial's first steps.

        Args:
            sharing: The number of processes that share the device's memory equally.

        Returns:
            The number of trials for each of these processes, at least 1.
        """
        if self._device.type == "cuda":
            one_trial = torch.cuda.max_memory_allocated(self._device) - self._data_bytes
            unused = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
            free = torch.cuda.mem_get_info(self._device)[0] + unused
        else:
            one_trial, free = max(1, peak_memory() - self._used_before), free_memory()
        more = int(_MEMORY_SHARE * free / sharing / one_trial)
        if self._device.type == "cuda":  # on a CPU the recorder is part of what a trial was measured to take
            more = min(more, int(_MEMORY_SHARE * free_memory() / sharing / self._recorder_bytes))
        return min(_LARGEST_STACK[self._device.type], 1 + more)


def in_micro_batches(stack: Stack, work: Callable[[], _Result]) -> _Result:
    """Do some work with a stack of one. If memory runs out, do it again with twice as many micro-batches.

    Args:
        stack: A stack of one. Its `micro_batches` is doubled each time that memory runs out.
        work: The work. If it runs out of memory, it must leave the stack as it was.

    Returns:
        What `work` returned.

    Raises:
        StabilityError: The memory does not hold a single utterance.
    """
    size, before = stack.configs[0].batch.size, stack.micro_batches
    while True:
        try:
            result = work()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if stack.micro_batches == size:
                raise StabilityError(
                    f"The memory of {stack.device} does not hold one utterance of a batch: "
                    "give a smaller batch.size or model, or free some memory."
                ) from None
            stack.micro_batches = min(2 * stack.micro_batches, size)
        else:
            if stack.micro_batches > before:
                log.warning(
                    "The memory of %s does not hold a batch of %d utterances: each batch is computed in %d parts. "
                    "The results are the same.",
                    stack.device,
                    size,
                    stack.micro_batches,
                )
            return result
