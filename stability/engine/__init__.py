"""The training step of a stack of trials, and its mathematics: decoder, loss, optimizer, signals, kernels."""
