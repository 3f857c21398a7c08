"""Write the report of a study: which factor made training unhealthy, how large its effect is, and how sure this is.

The study may be one of ours, or runs of any program that exist already:

python -m stability.report outputs/diagnosis                           a study of ours
python -m stability.report multirun                                    the jobs of a Hydra app
python -m stability.report runs                                        a folder for each run: TensorBoard, CSV, JSON …
python -m stability.report runs.csv                                    a row for each run: settings, path of the log
python -m stability.report mlflow:EXPERIMENT --uri http://HOST:5000    runs in MLflow
python -m stability.report outputs/phase outputs/boundary --where noise=1 --out both.html
python -m stability.report outputs/diagnosis --compare eps0.1-lr0.002-noise0.25 eps0.1-lr0.005-noise1-batch64-seed0
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from stability.core.errors import StabilityError
from stability.core.extras import require
from stability.core.text import printable
from stability.diagnosis.readers.names import name_in_log


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit status: 0, or 1 if a folder or an option is wrong.
    """
    parser = argparse.ArgumentParser(
        prog="python -m stability.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="a study, outputs/STUDY, or a trial; a folder of runs; a table of runs; mlflow:EXPERIMENT",
    )
    parser.add_argument(
        "--claims",
        metavar="CLAIMS",
        help="the claims to rule on: a file, a name in conf/claims/, or none (default: those that the study states)",
    )
    parser.add_argument(
        "--compare", nargs=2, metavar=("A", "B"), help="two trials, by folder, name or the beginning of the name"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the page (default: report.html in the first folder, report-WHERE.html, report-EXPERIMENT.html)",
    )
    parser.add_argument(
        "--where", nargs="+", default=[], action="extend", metavar="FACTOR=LEVEL", help="only trials with these levels"
    )
    parser.add_argument("--uri", help="the MLflow store (default: MLFLOW_TRACKING_URI, or sqlite:///outputs/mlflow.db)")
    parser.add_argument("--seed", metavar="SETTING", help="the setting that is the seed, if its name does not say so")
    parser.add_argument(
        "--map",
        action="append",
        default=[],
        type=name_in_log,
        metavar="SIGNAL=NAME",
        help="what the logs call step, loss, grad_norm, lr, per or val_loss (may be repeated)",
    )
    options = parser.parse_args(arguments)
    try:
        require("train")
        from stability.analysis.claims import find_claims  # late: SciPy and matplotlib take a while
        from stability.reporting.page import write_report
        from stability.reporting.recorded import stated_claims

        claims = options.claims or stated_claims(list(map(Path, options.sources)))
        report = write_report(
            options.sources,
            claims=None if claims in (None, "none") else find_claims(claims),
            where=dict(map(_condition, options.where)),
            pair=options.compare,
            out=options.out,
            uri=options.uri,
            seed=options.seed,
            names=dict(options.map),
        )
    except StabilityError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    notes = [f"- {note}" for note in (*report.notes, *report.left_out)]
    print("\n".join(map(printable, [*report.sentences, *notes, report.page])))
    return 0


def _condition(text: str) -> tuple[str, Any]:
    """Split FACTOR=LEVEL. The level is read as on the command line of a training."""
    from omegaconf import OmegaConf

    name, equals, level = text.partition("=")
    if not equals or not name:
        raise StabilityError(f"--where {text}: give FACTOR=LEVEL, such as epsilon=1e-8.")
    value = OmegaConf.to_object(OmegaConf.from_dotlist([f"level={level}"]))["level"]  # type: ignore[index,call-overload]
    return name, tuple(value) if isinstance(value, list) else value


if __name__ == "__main__":
    sys.exit(main())
