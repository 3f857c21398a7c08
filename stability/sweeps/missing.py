"""Lists the trials of a sweep that have no verdict when it ends, each with the reason."""

from collections.abc import Mapping
from pathlib import Path

from stability.core.files import ERROR, LOCK, short_path
from stability.core.locks import is_locked
from stability.core.text import counted
from stability.sweeps.progress import CRASHED, SweepProgress, crash_reason


def list_missing(progress: SweepProgress, failed: Mapping[Path, str]) -> str:
    """List the trials that have no verdict, one a line; empty if there are none.

    Args:
        progress: The sweep, which has ended.
        failed: Why a trial could not be trained, by its folder.
    """
    crashed = [folder for folder, outcome in progress.outcomes.items() if outcome == CRASHED]
    missing = {folder: f"{crash_reason(folder)} ({short_path(folder / ERROR)})" for folder in crashed} | {**failed}
    for folder in progress.folders():
        if folder in progress.outcomes or folder in missing:
            continue
        if not progress.plan:  # another process of the same search may be training it
            continue
        if is_locked(folder / LOCK):
            missing[folder] = "another process is training it"
        else:
            missing[folder] = "it was not started, or its process was killed"
    if not missing:
        return ""
    verb = "has" if len(missing) == 1 else "have"
    lines = [f"  {progress.describe(folder)}: {reason}" for folder, reason in missing.items()]
    summary = f"{counted(len(missing), 'trial')} {verb} no verdict."
    return "\n".join([f"{summary} Run the same command again to train what is missing.", *lines])
