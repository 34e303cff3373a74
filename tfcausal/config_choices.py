"""The names that a configuration can choose from where another room keeps what they stand for."""

from __future__ import annotations

from typing import Literal

# The saliency methods that need neither an option nor an extra; `tfcausal.saliency.registry` has what they stand for.
Saliency = Literal[
    "wbp",
    "gradient",
    "gradient_times_input",
    "grad_cam",
    "guided_backpropagation",
    "integrated_gradients",
    "lrp.alpha2_beta1",
    "lrp.epsilon",
    "lrp.epsilon_alpha2_beta1",
    "lrp.epsilon_alpha2_beta1_flat",
    "lrp.epsilon_plus",
    "lrp.epsilon_plus_flat",
    "lrp.flat",
    "lrp.gamma",
    "lrp.w_square",
    "lrp.z_plus",
    "occlusion",
    "smoothgrad",
    "vargrad",
]

# Those that PPI can be trained with; `tfcausal.saliency.differentiable` has what they stand for.
TrainingSaliency = Literal[
    "wbp",
    "gradient",
    "grad_cam",
    "lrp.alpha2_beta1",
    "lrp.epsilon",
    "lrp.epsilon_alpha2_beta1",
    "lrp.epsilon_alpha2_beta1_flat",
    "lrp.epsilon_gamma_box",
    "lrp.epsilon_plus",
    "lrp.epsilon_plus_flat",
    "lrp.flat",
    "lrp.gamma",
    "lrp.w_square",
    "lrp.z_plus",
]
