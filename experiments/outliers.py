"""A copy of a data set in which one training trial in fifty is thirty times as loud, as after a fault of the amplifier.

    python experiments/outliers.py SET COPY

SET is a folder of sessions, as outputs/data/synthetic-…; what is trained on the copy is told data=t15 data.path=COPY.
"""

import shutil
import sys
from pathlib import Path

import h5py

EVERY, LOUDER = 50, 30.0


def main(source: Path, copy: Path) -> None:
    """Write the copy, which must not be there, and say what was changed."""
    shutil.copytree(source, copy)
    seen = changed = 0
    for path in sorted(copy.glob("*/data_train.hdf5")):
        with h5py.File(path, "a") as day:
            for name in sorted(day):
                if seen % EVERY == 0:
                    day[name]["input_features"][...] *= LOUDER
                    changed += 1
                seen += 1
    print(f"{changed} of {seen} training trials in {copy} are {LOUDER:g} times as loud")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
