"""Find the smallest change of settings that makes a failed training healthy, when there is no healthy one to compare.

Give the training as overrides or as the folder of a finished trial, and after it further settings of all trials:

python -m stability.repair 'optimizer=adam_default lr=0.05' steps=300
python -m stability.repair outputs/single/FAILED --trials 20
python -m stability.repair settings.lr=3 trainer=command 'trainer.command=python train.py --lr {lr} --seed {seed}'

The cause of its failure says what to try, small changes first. One that is healthy is confirmed on fresh seeds. The
answer is printed, with the command to train with it, and explained in outputs/repair/repair.html. The same command goes
on from where it was stopped.
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
        prog="python -m stability.repair",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("failed", metavar="FAILED", help="what fails: overrides in quotes, or a trial's folder")
    parser.add_argument(
        "common",
        nargs="*",
        default=[],
        metavar="OVERRIDE",
        help="further settings, as for stability.train; study=NAME: the folder",
    )
    parser.add_argument("--seeds", type=count, default=2, metavar="N", help="fresh seeds in which it has to be healthy")
    parser.add_argument("--trials", type=count, metavar="N", help="stop after so many trials, earlier ones included")
    parser.add_argument("--steps", type=count, metavar="N", help="stop before the trials make more steps than this")
    parser.add_argument("--dry-run", action="store_true", help="list the changes to try; train nothing")
    options = parser.parse_intermixed_args(arguments)
    try:
        require("train")
    except StabilityError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    from stability import train  # late, as the packages that they need may be missing
    from stability.config.commandline import sweeper_words

    settings = {name: vars(options)[name] for name in ("failed", "seeds", "trials", "steps")}
    sys.argv[1:] = sweeper_words("repair", settings, options.common, dry_run=options.dry_run)
    train.main()
    return 0


if __name__ == "__main__":
    sys.exit(main())
