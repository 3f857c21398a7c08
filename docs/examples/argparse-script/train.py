"""A plain training script: points on ten arms of a spiral, a small network, SGD, and a CSV log."""

import argparse
import csv

import torch
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=0.1)
parser.add_argument("--momentum", type=float, default=0.9)
parser.add_argument("--hidden", type=int, default=32)
parser.add_argument("--steps", type=int, default=300)
parser.add_argument("--seed", type=int, default=0)
options = parser.parse_args()

ARMS = 10
torch.manual_seed(options.seed)


def spirals(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points `[count, 2]` on the arms of a spiral, and which arm each is on `[count]`."""
    labels, radius = torch.randint(ARMS, (count,)), torch.rand(count).sqrt()
    angle = 2 * radius + 2 * torch.pi * labels / ARMS
    x = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
    return x + 0.01 * torch.randn(count, 2), labels


held_out, held_out_labels = spirals(1000)
model = nn.Sequential(
    nn.Linear(2, options.hidden),
    nn.ReLU(),
    nn.Linear(options.hidden, options.hidden),
    nn.ReLU(),
    nn.Linear(options.hidden, ARMS),
)
optimizer = torch.optim.SGD(model.parameters(), lr=options.lr, momentum=options.momentum)

with open("log.csv", "w", newline="", buffering=1) as file:
    log = csv.writer(file)
    log.writerow(["step", "loss", "grad_norm", "val_error_rate"])
    for step in range(options.steps):
        x, labels = spirals(128)
        loss = nn.functional.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1e9)
        optimizer.step()
        error = ""
        if step % 20 == 19:
            with torch.no_grad():
                error = (model(held_out).argmax(1) != held_out_labels).float().mean().item()
        log.writerow([step, loss.item(), norm.item(), error])
