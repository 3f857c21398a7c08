"""Brings one trial from its start, or from where it was stopped, to its verdict. It writes only into its folder."""

from pathlib import Path

from filelock import FileLock, Timeout

from stability.config.schema import Config
from stability.core.errors import StabilityError, TrialBusy, write_error
from stability.core.files import ERROR, FIGURE, LOCK, VERDICT
from stability.diagnosis.verdict import Verdict, read_verdict
from stability.engine.memory import is_out_of_memory
from stability.tracking.api import open_tracker
from stability.trials.command import run_command
from stability.trials.display import show_verdict
from stability.trials.scheduler import train_together
from stability.trials.setup import clear, open_data
from stability.trials.training import OpenData, train_decoder


def run_trial(config: Config, folder: Path, *, quiet: bool = False) -> Verdict:
    """Train a trial to its end, from its last checkpoint if there is one.

    A trial that already has its verdict is not trained: its verdict is printed again.

    Args:
        config: The trial's configuration.
        folder: The trial's folder; it is made if it is missing.
        quiet: Whether to print nothing.

    Returns:
        The verdict. It is also written into the folder.

    Raises:
        StabilityError: The user can correct what is wrong: data, a setting, a file, or too little memory.
        TrialBusy: Another process is training the trial.
        Interrupted: Ctrl-C or SIGTERM stopped the trial. It has written a checkpoint.
    """
    (result,) = train_together([trial(config, folder, quiet=quiet)], size=1)
    if isinstance(result, BaseException):
        raise result
    return result


async def trial(config: Config, folder: Path, *, quiet: bool = False, open_data: OpenData = open_data) -> Verdict:
    """Train a trial as `run_trial` does, but as a coroutine for the scheduler.

    Args:
        config: The trial's configuration.
        folder: The trial's folder; it is made if it is missing.
        quiet: Whether to print nothing.
        open_data: Opens the data set. The trials of a stack must share one.

    Returns:
        The verdict.

    Raises:
        StabilityError: See `run_trial`, which raises the same errors.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / LOCK).acquire(timeout=0):
            return await _finish(config, folder, quiet=quiet, open_data=open_data)
    except Timeout:
        raise TrialBusy(f"{folder} is being trained by another process: wait for it.") from None
    except OSError as error:
        raise write_error(folder, error) from error
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise StabilityError(
            f"The memory of device={config.device} does not hold one trial: give a smaller batch.size or model.units, "
            "or free some memory."
        ) from error


async def _finish(config: Config, folder: Path, *, quiet: bool, open_data: OpenData) -> Verdict:
    """Train up to the verdict if there is none yet. Then draw the figure and close the tracker's run."""
    (folder / ERROR).unlink(missing_ok=True)
    if config.fresh:
        clear(folder)
    finished_before = (folder / VERDICT).exists()
    if finished_before:
        verdict = read_verdict(folder / VERDICT)
        tracker = open_tracker(config.tracking, folder, outputs=Path(config.outputs))
    elif config.runs_command:
        verdict, tracker = run_command(config, folder, quiet=quiet)
    else:
        verdict, tracker = await train_decoder(config, folder, quiet=quiet, open_data=open_data)
    if not (folder / FIGURE).exists():
        from stability.diagnosis.run_figure import draw_run  # late: matplotlib takes a while to import

        try:
            draw_run(folder, None if config.runs_command else config.optimizer.clip_norm)
        except BaseException:
            tracker.abort("FAILED")
            raise
    tracker.finish()
    show_verdict(verdict, folder, tracker.where, finished_before=finished_before, quiet=quiet)
    return verdict
