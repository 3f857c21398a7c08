"""The configuration of a trial: the typed schema of `conf/`, its resolvers, and a trial's name."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

CHECKOUT = Path(__file__).parent.parent


@dataclass
class Optimizer:
    """AdamW and the clip before it; the meaning of each value stands in `conf/optimizer/official.yaml`."""

    epsilon: float
    beta1: float
    beta2: float
    weight_decay: float
    weight_decay_day: float
    clip_norm: float | None
    fused: bool


@dataclass
class Schedule:
    """Learning rates and the steps at which they change."""

    lr_max: float
    lr_min: float
    lr_max_day: float
    lr_min_day: float
    warmup_steps: int
    decay_steps: int


@dataclass
class Augmentation:
    """Noise in units of the features' standard deviation, cut and smoothing in bins."""

    white_noise_std: float
    constant_offset_std: float
    max_cut: int
    smooth_std: float


@dataclass
class Batch:
    """Trials and days in a training batch."""

    size: int
    days: int


@dataclass
class Loss:
    """How a trial's CTC loss is reduced over its labels: per_trial_sum or per_label_mean."""

    reduction: str


@dataclass
class Precision:
    """The dtype of the forward pass (auto, fp32, bf16, fp16) and fp16's first loss scale."""

    dtype: str
    initial_loss_scale: float


@dataclass
class Model:
    """The decoder's size, and the factor on every length in steps that goes with it."""

    layers: int
    units: int
    patch_size: int
    patch_stride: int
    input_dropout: float
    rnn_dropout: float
    time_scale: float


@dataclass
class Synthetic:
    """Settings of the made-up data set; the same settings give the same bytes."""

    seed: int
    days: int
    features: int
    train_trials: int
    val_trials: int
    words: int
    noise: float
    drift: float


@dataclass
class Data:
    """Where the trials come from and what to do with bad ones (error or exclude)."""

    path: str | None
    sessions: list[str] | None
    on_bad_trial: str
    synthetic: Synthetic | None


@dataclass
class Tracking:
    """Where runs are compared: mlflow or none."""

    backend: str
    uri: str | None
    experiment: str


@dataclass
class Config:
    """One trial."""

    optimizer: Optimizer
    schedule: Schedule
    aug: Augmentation
    batch: Batch
    loss: Loss
    precision: Precision
    model: Model
    data: Data
    tracking: Tracking
    seed: int
    steps: int
    validate_every: int
    checkpoint_every: int
    device: str
    init_from: str | None
    study: str
    outputs: str
    fresh: bool
