"""Writes a small synthetic data set in the layout of the T15 recordings, as the official trainer reads it.

python sessions.py FOLDER

The trainer takes a folder for a session if its name begins with t15.20, so each session gets a link of such a name.
"""

import sys
from pathlib import Path

from stability.config.schema import Synthetic
from stability.data.synthetic import make_dataset

SETTINGS = Synthetic(seed=0, days=4, features=32, train_utterances=40, val_utterances=8, words=2, noise=0.5, drift=0.2)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for session in sorted(make_dataset(SETTINGS, folder / ".set").glob("*.day*")):
        link = folder / f"t15.20-{session.name.rpartition('.')[2]}"
        if not link.exists():
            link.symlink_to(session.resolve())
        held_out = "with" if (session / "data_val.hdf5").exists() else "without"
        print(f"{link.name} {held_out} utterances to validate on")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
