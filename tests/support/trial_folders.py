"""The folders that trials leave behind, compared and prepared."""

from pathlib import Path

import numpy as np

from stability.core.files import FIGURE
from stability.diagnosis.table import read_table
from stability.diagnosis.verdict import Verdict


def without_figure(folder: Path) -> Path:
    """Prepare a trial's folder so that no figure is drawn: drawing takes longer than the trial's steps."""
    folder.mkdir(exist_ok=True)
    (folder / FIGURE).touch()
    return folder


def assert_same_trial(folder: Path, other: Path) -> None:
    """Check that both folders hold the same trial, which was trained twice, with different neighbours."""
    for name in ("signals.csv", "validation.csv"):
        own, wanted = read_table(folder / name), read_table(other / name)
        assert own.names == wanted.names
        np.testing.assert_array_equal(own.steps, wanted.steps)
        np.testing.assert_array_equal(own.measured, wanted.measured)
        np.testing.assert_allclose(own.values, wanted.values, rtol=2e-3, atol=1e-5, err_msg=f"{name} of {folder}")
        losses = own["loss"][:50], wanted["loss"][:50]
        np.testing.assert_allclose(*losses, rtol=1e-4, err_msg=f"losses of {folder}")
    verdict, wanted_verdict = (Verdict.from_json((f / "verdict.json").read_text()) for f in (folder, other))
    assert (verdict.outcome, verdict.cause) == (wanted_verdict.outcome, wanted_verdict.cause)
    assert verdict.onset_step == wanted_verdict.onset_step
