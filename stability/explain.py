"""Find out why one training fails and another does not: the fewest settings that make the difference.

Give the two, each as overrides or as the folder of a finished trial, and after them what both have in common:

python -m stability.explain 'optimizer=adam_default lr=0.05' 'optimizer=official' steps=300
python -m stability.explain outputs/single/FAILED outputs/single/HEALTHY --trials 60
python -m stability.explain settings.lr=3 settings.lr=0.1 trainer=command 'trainer.command=python train.py --lr {lr}'

It trains mixtures of the two with several seeds, as few as the answer needs. The answer is printed, and explained in
outputs/explain/explanation.html. The same command goes on from where it was stopped.
"""

import argparse
import sys

from stability.core.arguments import count
from stability.core.errors import StabilityError
from stability.core.extras import require


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit status: 0, or 1 if something has to be corrected first. If a signal stops it, as in training.
    """
    parser = argparse.ArgumentParser(
        prog="python -m stability.explain",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("failed", metavar="FAILED", help="what fails: overrides in quotes, or a trial's folder")
    parser.add_argument("healthy", metavar="HEALTHY", help="what works")
    parser.add_argument(
        "common",
        nargs="*",
        default=[],
        metavar="OVERRIDE",
        help="settings of both, as for stability.train; study=NAME: the folder",
    )
    parser.add_argument("--trials", type=count, metavar="N", help="stop after so many trials, earlier ones included")
    parser.add_argument("--steps", type=count, metavar="N", help="stop before the trials make more steps than this")
    parser.add_argument(
        "--dry-run", action="store_true", help="list the differences and what it may cost; train nothing"
    )
    options = parser.parse_intermixed_args(arguments)
    try:
        require("train")
    except StabilityError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    from stability import train  # late, as the packages that they need may be missing
    from stability.config.commandline import sweeper_words

    settings = {name: vars(options)[name] for name in ("failed", "healthy", "trials", "steps")}
    sys.argv[1:] = sweeper_words("explain", settings, options.common, dry_run=options.dry_run)
    train.main()
    return 0


if __name__ == "__main__":
    sys.exit(main())
