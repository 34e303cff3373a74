"""Keras callbacks for `model.fit`: schedules, saliency snapshots, causal metrics, guards, resumable training."""

from tfcausal.callbacks.causal_metrics import CausalMetrics
from tfcausal.callbacks.checkpoints import EpochCheckpoint, restore_checkpoint
from tfcausal.callbacks.divergence import ObjectiveGuard, StopOnDivergence
from tfcausal.callbacks.resuming import ResumableTraining
from tfcausal.callbacks.schedules import ParameterSchedule, linear_ramp, steps, warm_up
from tfcausal.callbacks.snapshots import SaliencySnapshots
from tfcausal.callbacks.training_progress import TrainingProgress

__all__ = [
    "CausalMetrics",
    "EpochCheckpoint",
    "ObjectiveGuard",
    "ParameterSchedule",
    "ResumableTraining",
    "SaliencySnapshots",
    "StopOnDivergence",
    "TrainingProgress",
    "linear_ramp",
    "restore_checkpoint",
    "steps",
    "warm_up",
]
