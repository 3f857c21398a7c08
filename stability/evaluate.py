"""Evaluate a trained decoder: phoneme error rates by session, which phoneme is heard as which, and logits into a file.

The checkpoint is one of ours, or a public one. Settings may follow, as for stability.train:

python -m stability.evaluate outputs/single/TRIAL
python -m stability.evaluate t15_pretrained_rnn_baseline data.path=/data/hdf5_data_final
python -m stability.evaluate outputs/single/TRIAL/checkpoints/last.pt data=t15 data.path=/data/hdf5_data_final
python -m stability.evaluate best_checkpoint data.path=/data/hdf5_data_final --split test --logits test.hdf5
"""

import argparse
import sys
from pathlib import Path

from stability.core.errors import Interrupted, StabilityError
from stability.core.extras import require
from stability.core.stopping import signals_handled


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit status: 0, or 1 if something has to be corrected first. If a signal stops it, as in training.
    """
    parser = argparse.ArgumentParser(
        prog="python -m stability.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help="a checkpoint's file; or a folder: that of a trial, or that of the official trainer's output",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="OVERRIDE", help="further settings, as for stability.train: data.path=FOLDER"
    )
    parser.add_argument(
        "--split", choices=("val", "test", "train"), default="val", help="the utterances to decode (default: val)"
    )
    parser.add_argument(
        "--logits", type=Path, metavar="OUT", help="write logits and phonemes of each utterance to OUT.hdf5 or OUT.npz"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="where the results go (default: evaluation/SPLIT in the trial's folder, or here)",
    )
    options = parser.parse_intermixed_args(arguments)
    try:
        with signals_handled():
            require("train")
            from stability.reporting.evaluation import show_evaluation, write_evaluation  # late: they take seconds
            from stability.trials.evaluation import evaluate_trained
            from stability.trials.trained import open_trained

            trained = open_trained(options.checkpoint, options.overrides)
            found = evaluate_trained(trained, options.split, options.logits, overwrite=options.overwrite)
            folder = options.out or (trained.folder or Path()) / "evaluation" / options.split
            show_evaluation(found, options.logits)
            if found.confusions is not None:
                write_evaluation(found, folder)
    except StabilityError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Interrupted as stopped:
        print("Stopped. Run the same command again.", file=sys.stderr)
        return stopped.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
