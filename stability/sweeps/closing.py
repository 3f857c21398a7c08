"""What a sweep says when it ends: its report, and the trials that have no verdict, each with the reason."""

from collections.abc import Mapping
from pathlib import Path

from stability.core.files import ERROR, EXPLANATION, LOCK, REPAIR, VERDICT, short_path
from stability.core.locks import is_locked
from stability.core.text import counted
from stability.sweeps.progress import CRASHED, SweepProgress, crash_reason
from stability.tracking.api import close_study


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


def report_explanation(study: Path, *, tracked: bool, stopped: bool) -> None:
    """Write and print what an explanation has found, and send it to the tracker.

    Args:
        study: The folder.
        tracked: Whether the study was opened in the tracker.
        stopped: Whether Ctrl-C or SIGTERM ended it.
    """
    if not (study / EXPLANATION).exists():  # the question was refused
        if tracked:
            close_study(study, [], "", stopped=stopped)
        return
    from stability.reporting.explanation import write_explanation  # late, as it is needed only at the end

    written = write_explanation(study)
    if tracked:
        print(close_study(study, [written.page, study / EXPLANATION], " ".join(written.sentences), stopped=stopped))


def report_repair(study: Path, *, tracked: bool, stopped: bool) -> None:
    """Write and print what a repair has found, and send it to the tracker.

    Args:
        study: The folder.
        tracked: Whether the study was opened in the tracker.
        stopped: Whether Ctrl-C or SIGTERM ended it.
    """
    if not (study / REPAIR).exists():  # FAILED was refused
        if tracked:
            close_study(study, [], "", stopped=stopped)
        return
    from stability.reporting.repair import write_repair  # late, as it is needed only at the end

    written = write_repair(study)
    if tracked:
        print(close_study(study, [written.page, study / REPAIR], written.answer, stopped=stopped))


def report_study(study: Path, claims: str | None, progress: SweepProgress, *, tracked: bool, stopped: bool) -> None:
    """Write and print the report of a study if any of its trials is finished, and send it to the tracker.

    Args:
        study: Its folder.
        claims: The claims to rule on, as `find_claims` takes them; None for no claims.
        progress: The sweep, which has ended.
        tracked: Whether the study was opened in the tracker.
        stopped: Whether Ctrl-C or SIGTERM ended it.

    Raises:
        StabilityError: The report cannot be written.
    """
    if not any((folder / VERDICT).exists() for folder in progress.folders()):
        if tracked:
            close_study(study, [], "", stopped=stopped)
        return
    from stability.analysis.claims import find_claims  # late: SciPy and matplotlib take a while
    from stability.reporting.page import write_report

    report = write_report([study], claims=None if claims is None else find_claims(claims))
    print("", *report.sentences, f"report    {short_path(report.page)}", sep="\n")
    if tracked:
        files, note = [report.page, *report.files], " ".join(report.sentences)
        print(close_study(study, files, note, factors=report.factors, stopped=stopped))
