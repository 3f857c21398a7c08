"""Copy a data set, and make one training utterance in fifty thirty times as loud, as after a fault of the amplifier.

    python experiments/outliers.py SET COPY

SET is a folder of sessions, such as outputs/data/synthetic-…. Train on the copy with data=t15 data.path=COPY.
"""

import shutil
import sys
from pathlib import Path

import h5py

EVERY, LOUDER = 50, 30.0


def main(source: Path, copy: Path) -> None:
    """Write the copy, which must not exist yet, and print what was changed."""
    shutil.copytree(source, copy)
    seen = changed = 0
    for path in sorted(copy.glob("*/data_train.hdf5")):
        with h5py.File(path, "a") as day:
            for name in sorted(day):
                if seen % EVERY == 0:
                    day[name]["input_features"][...] *= LOUDER
                    changed += 1
                seen += 1
    print(f"{changed} of {seen} utterances to train on in {copy} are {LOUDER:g} times as loud")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
