"""tfcausal: train Keras image classifiers that look at the cause, see what they look at, and measure it.

The public names are loaded when they are first used: importing `tfcausal` does not import TensorFlow.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "CFCNModel": "tfcausal.models.cfcn",
    "Deletion": "tfcausal.evaluation.faithfulness",
    "GradCAM": "tfcausal.saliency.cam",
    "IntegratedGradients": "tfcausal.saliency.gradients",
    "LRP": "tfcausal.saliency.lrp",
    "MaskEnergy": "tfcausal.evaluation.localisation",
    "Occlusion": "tfcausal.saliency.occlusion",
    "OperationGraph": "tfcausal.graph",
    "PPIModel": "tfcausal.models.ppi",
    "RunDirectory": "tfcausal.runs",
    "SmoothGrad": "tfcausal.saliency.gradients",
    "TfCausalError": "tfcausal.errors",
    "WBP": "tfcausal.saliency.wbp",
    "XpliqueExplainer": "tfcausal.saliency.adapters",
    "activation_maximization": "tfcausal.saliency.keras_vis",
    "all_convolutional": "tfcausal.models.backbones.all_convolutional",
    "available_explainers": "tfcausal.saliency.registry",
    "flatten": "tfcausal.functional",
    "get_explainer": "tfcausal.saliency.registry",
    "image_folder": "tfcausal.data.sources.image_folder",
    "load_config": "tfcausal.config",
    "quantus_explain_func": "tfcausal.saliency.adapters",
    "register_rule": "tfcausal.saliency.registry",
    "textured_digits": "tfcausal.data.sources.textured_digits",
}

__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'tfcausal' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
