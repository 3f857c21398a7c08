"""How fast is a step? Times our steps, signals included, and those of a plain PyTorch loop with the same mathematics.

    python -m experiments.benchmarks.step_speed [overrides]          # make benchmark

The two alternate. Prints the median time of a step of each, their ratio, and in which operations our time goes. Run
nothing else on the machine meanwhile.
"""

import sys
import time
from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from stability.config.hydra import conf_folder, register_schema, resolve_config
from stability.config.schema import Config
from stability.core.device import DTYPES, choose_precision
from stability.data.augment import smooth
from stability.data.batches import Batch, training_batch
from stability.data.records import Dataset
from stability.engine.decoder import frames_of, init_parameters
from stability.engine.schedule import learning_rates
from stability.engine.stack import new_stack
from stability.engine.step import train_steps
from stability.trials.setup import open_data

ROUNDS, STEPS = 10, 10


class PlainDecoder(nn.Module):
    """The decoder, written with PyTorch's own layers."""

    def __init__(self, c: Config, features: int, days: int) -> None:
        super().__init__()
        m = c.model
        self.patch = (m.patch_size, m.patch_stride)
        self.day_weights = nn.ParameterList([torch.eye(features) for _ in range(days)])
        self.day_biases = nn.ParameterList([torch.zeros(1, features) for _ in range(days)])
        self.gru = nn.GRU(features * m.patch_size, m.units, m.layers, batch_first=True, dropout=m.rnn_dropout)
        self.out = nn.Linear(m.units, 41)
        self.h0 = nn.Parameter(torch.zeros(1, 1, m.units))
        self.dropout = nn.Dropout(m.input_dropout)

    def forward(self, x: Tensor, days: list[int]) -> Tensor:
        """Logits of features (B, T, F)."""
        weights = torch.stack([self.day_weights[d] for d in days])
        biases = torch.stack([self.day_biases[d] for d in days])
        # Float32 for the GRU, as in the official trainer, whose biases are. Before PyTorch 2.10 bfloat16 input keeps it
        # from cuDNN, also under autocast.
        x = self.dropout(F.softsign(torch.baddbmm(biases, x, weights).float()))
        size, stride = self.patch
        frames = (x.shape[1] - size) // stride + 1
        x = torch.stack([x[:, i * stride : i * stride + size].flatten(1) for i in range(frames)], 1)
        states, _ = self.gru(x, self.h0.expand(self.gru.num_layers, len(x), -1).contiguous())
        logits: Tensor = self.out(states)
        return logits


AfterBackward = Callable[[int, Tensor, Tensor, Tensor, Tensor, Batch], object]  # step, loss, logits, frames, inputs


def plain_loop(  # type: ignore[no-untyped-def]
    c: Config,
    dataset: Dataset,
    device: torch.device,
    attach: Callable[[nn.Module, torch.optim.Optimizer], AfterBackward] = lambda model, optimizer: lambda *step: None,
):
    """A function that trains some steps as a plain script would: without trial axis, seeded streams and signals.

    `attach` makes, from the model and its optimizer, a function that is called at each step before the update: a
    detector whose cost is to be measured.
    """
    model = PlainDecoder(c, dataset.n_features, len(dataset.sessions)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, eps=c.optimizer.epsilon, fused=True)
    after_backward = attach(model, optimizer)
    dtype = DTYPES[choose_precision(c.precision.dtype, device)]
    step = 0

    def train(steps: int) -> None:
        nonlocal step
        for _ in range(steps):
            batch = training_batch(dataset.train, c.batch.size, c.batch.days, seed=0, step=step)
            x = batch.features.to(device)
            x = x + torch.randn_like(x) * c.aug.white_noise_std
            x = x + torch.randn(len(x), 1, x.shape[2], device=device) * c.aug.constant_offset_std
            days = [day for day, n in zip(batch.days, batch.rows_per_day, strict=True) for _ in range(n)]
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                logits = model(smooth(x, c.aug.smooth_std), days)
            log_probs = logits.float().log_softmax(-1).transpose(0, 1)
            frames = frames_of(batch.bins, c.model)
            loss = F.ctc_loss(log_probs, batch.labels.to(device), frames, batch.label_counts, reduction="none").mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            after_backward(step, loss, logits, frames, x, batch)
            nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            for group in optimizer.param_groups:
                group["lr"] = learning_rates(c.schedule, step)[0]
            optimizer.step()
            step += 1

    return train


def main() -> None:
    """Time both and print."""
    register_schema()
    with initialize_config_dir(config_dir=str(conf_folder())):
        c = resolve_config(compose("config", overrides=sys.argv[1:]))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dataset = open_data(c, device)
    parameters = init_parameters(c.model, dataset.n_features, len(dataset.sessions), c.seed)
    stack = new_stack([c], [parameters], device)
    plain = plain_loop(c, dataset, device)

    def seconds(train) -> float:  # type: ignore[no-untyped-def]
        start = time.perf_counter()
        train(STEPS)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / STEPS

    def ours(steps: int) -> None:
        train_steps(stack, dataset.train, steps)

    pairs = [(seconds(ours), seconds(plain)) for _ in range(ROUNDS + 1)][1:]  # the first warms up
    print(f"ours {median(a for a, _ in pairs) * 1e3:.1f} ms, plain {median(b for _, b in pairs) * 1e3:.1f} ms a step")
    print(f"ratio ours/plain, median of {ROUNDS} pairs: {median(a / b for a, b in pairs):.3f}")
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        ours(STEPS)
    print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=36))


if __name__ == "__main__":
    main()
