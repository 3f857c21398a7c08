"""A Hydra app that trains a tiny wav2vec2 with CTC from random weights, with Hugging Face's Trainer."""

from pathlib import Path

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from torch import Tensor
from transformers import EvalPrediction, Trainer, TrainingArguments, Wav2Vec2Config, Wav2Vec2ForCTC

from stability.huggingface import StabilityCallback

LETTERS, SAMPLES = 6, 80  # a letter is a tone of so many samples


def make_utterances(count: int, noise: float, seed: int) -> list[dict[str, Tensor]]:
    """Words of six to ten letters, each spoken as a row of tones. Labels of -100 are padding."""
    random = torch.Generator().manual_seed(seed)
    time = torch.arange(SAMPLES)
    tones = torch.stack([torch.sin(2 * torch.pi * time * (letter + 2) / 32) for letter in range(LETTERS)])
    utterances = []
    for length in torch.randint(6, 11, (count,), generator=random).tolist():
        word = torch.randint(LETTERS, (length,), generator=random)
        audio = torch.zeros(10 * SAMPLES)
        audio[: length * SAMPLES] = tones[word].flatten()
        labels = torch.full((10,), -100)
        labels[:length] = word + 1
        spoken = (torch.arange(10 * SAMPLES) < length * SAMPLES).long()
        audio = audio + noise * torch.randn(10 * SAMPLES, generator=random)
        utterances.append({"input_values": audio, "attention_mask": spoken, "labels": labels})
    return utterances


def letter_error_rate(prediction: EvalPrediction) -> dict[str, float]:
    """The letters that differ between what was spoken and what was written, over all letters."""
    errors = letters = 0
    for best, labels in zip(prediction.predictions.argmax(-1), prediction.label_ids, strict=True):
        written = [letter for letter in torch.tensor(best).unique_consecutive().tolist() if letter > 0]
        spoken = [letter for letter in labels.tolist() if letter > 0]
        errors, letters = errors + edit_distance(written, spoken), letters + len(spoken)
    return {"cer": errors / letters}


def edit_distance(a: list[int], b: list[int]) -> int:
    """Levenshtein's distance."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (x != y))
    return row[-1]


@hydra.main(config_path="conf", config_name="config", execution_whitelist=["stability.*"])
def main(cfg: DictConfig) -> float:
    """Train one model. Return its letter error rate."""
    torch.manual_seed(cfg.seed)
    model = Wav2Vec2ForCTC(
        Wav2Vec2Config(
            vocab_size=LETTERS + 1,
            pad_token_id=0,  # CTC's blank
            hidden_size=cfg.model.size,
            num_hidden_layers=cfg.model.layers,
            num_attention_heads=2,
            intermediate_size=2 * cfg.model.size,
            conv_dim=(32, 32, 32),
            conv_kernel=(10, 3, max(3, cfg.model.stride)),
            conv_stride=(5, 2, cfg.model.stride),
            num_feat_extract_layers=3,
            num_conv_pos_embeddings=8,
            num_conv_pos_embedding_groups=4,
            feat_extract_norm="layer",
            mask_time_prob=0.0,
            layerdrop=0.0,
            ctc_loss_reduction="mean",
        )
    )
    arguments = TrainingArguments(
        output_dir=str(Path(HydraConfig.get().runtime.output_dir) / "checkpoints"),
        max_steps=cfg.steps,
        learning_rate=cfg.lr,
        warmup_steps=20,
        per_device_train_batch_size=cfg.batch,
        per_device_eval_batch_size=64,
        eval_strategy="steps",
        eval_steps=50,
        save_strategy="no",
        logging_steps=50,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        seed=cfg.seed,
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=make_utterances(cfg.data.utterances, cfg.data.noise, 1),
        eval_dataset=make_utterances(64, cfg.data.noise, 2),
        compute_metrics=letter_error_rate,
        callbacks=[StabilityCallback()],
    )
    trainer.train()
    return trainer.evaluate()["eval_cer"]


if __name__ == "__main__":
    main()
