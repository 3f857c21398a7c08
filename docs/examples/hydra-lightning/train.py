"""A Lightning app with Hydra: a small GRU that learns by CTC to spell words from noisy frames."""

import hydra
import lightning as L
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from stability.lightning import StabilityCallback

LETTERS, FRAMES, LENGTH, FEATURES = 6, 24, 5, 12


def make_utterances(count: int, noise: float, seed: int) -> TensorDataset:
    """Words of five letters. A letter is a pattern that lasts a few frames."""
    random = torch.Generator().manual_seed(seed)
    patterns = torch.randn(LETTERS, FEATURES, generator=torch.Generator().manual_seed(0))
    words = torch.randint(LETTERS, (count, LENGTH), generator=random)
    frames = patterns[words].repeat_interleave(FRAMES // LENGTH + 1, dim=1)[:, :FRAMES]
    return TensorDataset(frames + noise * torch.randn(frames.shape, generator=random), words + 1)


class Speller(L.LightningModule):
    """A GRU with a CTC loss."""

    def __init__(self, cfg: DictConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.gru = nn.GRU(FEATURES, cfg.model.units, batch_first=True)
        self.dropout = nn.Dropout(cfg.model.dropout)
        self.head = nn.Linear(cfg.model.units, LETTERS + 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, `[batch, frames, letters + 1]`."""
        return self.head(self.dropout(self.gru(x)[0]))

    def loss(self, logits: Tensor, words: Tensor) -> Tensor:
        """The CTC loss. The spoken word has one letter after the other, and blank is 0."""
        log_probs = F.log_softmax(logits, -1).transpose(0, 1)
        lengths = torch.full((len(words),), logits.shape[1])
        return F.ctc_loss(log_probs, words, lengths, torch.full((len(words),), LENGTH), zero_infinity=True)

    def training_step(self, batch: list[Tensor], index: int) -> dict[str, Tensor]:
        """Return the loss, and the logits for the callback, which watches blank in them."""
        x, words = batch
        logits = self(x)
        return {"loss": self.loss(logits, words), "logits": logits.detach()}

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        """Log the loss and the letter error rate, by position: words have five letters."""
        x, words = batch
        logits = self(x)
        spelled = [torch.unique_consecutive(best) for best in logits.argmax(-1)]
        spelled = [letters[letters > 0][:LENGTH] for letters in spelled]
        padded = torch.stack([F.pad(letters, (0, LENGTH - len(letters))) for letters in spelled])
        repeats = (words[:, 1:] == words[:, :-1]).any(1)  # two equal letters in a row need a blank between them
        self.log("val_loss", self.loss(logits, words))
        self.log("val_cer", (padded != words)[~repeats].float().mean())

    def configure_optimizers(self) -> dict[str, object]:
        """Adam with a warm-up."""
        optimizer = torch.optim.Adam(self.parameters(), lr=self.cfg.optimizer.lr, eps=self.cfg.optimizer.eps)
        warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=max(1, self.cfg.optimizer.warmup))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": warmup, "interval": "step"}}


@hydra.main(config_path="conf", config_name="config", version_base="1.3")
def main(cfg: DictConfig) -> float:
    """Train one model. Return its validation loss."""
    L.seed_everything(cfg.seed, verbose=False)
    train = DataLoader(make_utterances(cfg.data.utterances, cfg.data.noise, 1), cfg.batch, shuffle=True)
    val = DataLoader(make_utterances(128, cfg.data.noise, 2), 128)
    trainer = L.Trainer(
        max_steps=cfg.steps,
        val_check_interval=len(train),
        accelerator="cpu",
        callbacks=[StabilityCallback()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Speller(cfg), train, val)
    return float(trainer.callback_metrics["val_loss"])


if __name__ == "__main__":
    main()
