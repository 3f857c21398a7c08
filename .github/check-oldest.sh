#!/usr/bin/env bash
# Install the lowest versions that pyproject.toml allows, and use them: first the base beside Hydra 1.3, then [train].
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python -m venv "$work/venv"
export PATH=$work/venv/bin:$PATH
unset PYTHONPATH

lowest() {  # the requirements of the base, or of an extra, with >= as ==
    python - "$@" <<'PYTHON'
import re, sys, tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
lines = project["optional-dependencies"][sys.argv[1]] if sys.argv[1:] else project["dependencies"]
print("\n".join(re.sub(r",.*", "", line).replace(">=", "==") for line in lines))
PYTHON
}

lowest > "$work/base.txt"
pip install --quiet . -r "$work/base.txt" hydra-core==1.3.2
cd "$work"
python - <<'PYTHON'
import sys
from stability import Monitor
import torch

model = torch.nn.Linear(4, 2)
optimizer = torch.optim.AdamW(model.parameters())
monitor = Monitor(model, optimizer)
for step in range(50):
    optimizer.zero_grad()
    loss = model(torch.randn(8, 4)).square().mean()
    loss.backward()
    assert monitor.step(loss) is None
    optimizer.step()
print(monitor.verdict())
assert "omegaconf" not in sys.modules
with open("log.csv", "w") as log:
    log.write("step,loss\n" + "".join(f"{step},{100 / (step + 1)}\n" for step in range(100)))
PYTHON
python -m stability.diagnose log.csv

cd "$root"
lowest train > "$work/train.txt"
pip install --quiet '.[train]' -r "$work/base.txt" -r "$work/train.txt"
cd "$work"
python -m stability.train steps=2 batch.size=8 model.units=8 data.synthetic.train_utterances=10
