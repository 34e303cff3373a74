"""tfcausal: train Keras image classifiers that look at the cause, see what they look at, and measure it.

The public names are loaded when they are first used: importing `tfcausal` does not import TensorFlow.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "CFCNModel": "tfcausal.models.cfcn",
    "CausalMetrics": "tfcausal.callbacks",
    "ChannelConcepts": "tfcausal.effects.channels",
    "ConceptAutoencoder": "tfcausal.effects.concepts",
    "ConceptEffectMaps": "tfcausal.effects.concept_maps",
    "ConceptEffects": "tfcausal.effects.expected",
    "Deletion": "tfcausal.evaluation.faithfulness",
    "GAINModel": "tfcausal.models.gain",
    "GradCAM": "tfcausal.saliency.cam",
    "ImageEffects": "tfcausal.effects.image_effects",
    "IntegratedGradients": "tfcausal.saliency.gradients",
    "LRP": "tfcausal.saliency.lrp",
    "MaskEnergy": "tfcausal.evaluation.localisation",
    "ObjectiveGuard": "tfcausal.callbacks",
    "Occlusion": "tfcausal.saliency.occlusion",
    "OperationGraph": "tfcausal.graph",
    "PPIModel": "tfcausal.models.ppi",
    "ParameterSchedule": "tfcausal.callbacks",
    "PixelEffects": "tfcausal.effects.maps",
    "RRRModel": "tfcausal.models.rrr",
    "ResumableTraining": "tfcausal.callbacks",
    "RunDirectory": "tfcausal.runs",
    "SaliencySnapshots": "tfcausal.callbacks",
    "SmoothGrad": "tfcausal.saliency.gradients",
    "TABLE_4": "tfcausal.models.backbones.all_convolutional",
    "TfCausalError": "tfcausal.errors",
    "WBP": "tfcausal.saliency.wbp",
    "XpliqueExplainer": "tfcausal.saliency.adapters",
    "activation_maximization": "tfcausal.saliency.keras_vis",
    "all_convolutional": "tfcausal.models.backbones.all_convolutional",
    "available_explainers": "tfcausal.saliency.registry",
    "chexnet": "tfcausal.models.backbones.applications",
    "choose_strategy": "tfcausal.distributed",
    "export_model": "tfcausal.export",
    "flatten": "tfcausal.functional",
    "get_attack": "tfcausal.interventions.adversarial",
    "get_explainer": "tfcausal.saliency.registry",
    "image_folder": "tfcausal.data.sources.image_folder",
    "inception_v3": "tfcausal.models.backbones.applications",
    "load_config": "tfcausal.config",
    "multi_view": "tfcausal.models.backbones.multi_view",
    "quantus_explain_func": "tfcausal.saliency.adapters",
    "register_rule": "tfcausal.saliency.registry",
    "retrain_last_layer": "tfcausal.models.last_layer",
    "textured_digits": "tfcausal.data.sources.textured_digits",
    "two_convolutions": "tfcausal.models.backbones.two_convolutions",
    "vgg": "tfcausal.models.backbones.vgg",
    "vgg11": "tfcausal.models.backbones.vgg",
    "vgg16": "tfcausal.models.backbones.vgg",
    "vgg19": "tfcausal.models.backbones.vgg",
}

__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'tfcausal' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
