"""Send to MLflow what it does not have yet of trials and studies, as after an outage or with `tracking=none`.

python -m stability.send outputs/diagnosis
python -m stability.send outputs/single --uri http://localhost:5000
"""

import argparse
import sys
from pathlib import Path

from stability.core.errors import StabilityError
from stability.core.extras import require
from stability.core.text import listed, printable


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit status: 1 if anything was not sent, else 0.
    """
    parser = argparse.ArgumentParser(
        prog="python -m stability.send",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", metavar="FOLDER", nargs="+", type=Path, help="of a trial, of a study, or of several")
    parser.add_argument(
        "--uri",
        help="the MLflow store (default: MLFLOW_TRACKING_URI, or outputs/mlflow.db if they were trained with it)",
    )
    options = parser.parse_args(arguments)
    try:
        require("train")
    except StabilityError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    sent = [_send(folder, options.uri) for folder in options.folders]  # all, even if one fails
    return 0 if all(sent) else 1


def _send(folder: Path, uri: str | None) -> bool:
    """Send what a folder holds, print what became of it, and return whether all was sent."""
    from stability.tracking.api import find_trials_and_studies, send_missing, stores_to_ask_for
    from stability.tracking.store import uri_from_environment

    try:
        found = find_trials_and_studies(folder)
        if uri is None and uri_from_environment() is None and (stores := stores_to_ask_for(folder, found)):
            raise StabilityError(
                f"Nothing of {folder} was sent. It names {listed(stores)}, and anybody can write such an address "
                f"into a folder. If the store is yours, or for another one: --uri {stores[0]}"
            )
    except StabilityError as error:
        print(f"error: {error}", file=sys.stderr)
        return False
    all_sent = True
    for each in found:
        try:
            print(printable(f"{each}: {send_missing(each, uri)}"))
        except StabilityError as error:
            print(f"error: {error}", file=sys.stderr)
            all_sent = False
    return all_sent


if __name__ == "__main__":
    sys.exit(main())
