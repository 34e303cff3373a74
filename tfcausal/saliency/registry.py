"""Every saliency method by its name, for configurations, the command line and :func:`get_explainer`.

A method's module is imported when the method is used: looking a name up needs neither TensorFlow nor Keras.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from tfcausal.errors import InvalidArgument, message

if TYPE_CHECKING:
    import keras

    from tfcausal.saliency.base import Explainer
    from tfcausal.saliency.propagation import Backward, Offset, RuleTable

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class ExplainerEntry:
    """A saliency method.

    Attributes:
        name: What it is called in configurations.
        description: What its map tells, in one line.
        source: The paper that it comes from.
        needs: The extra of this package that it needs, as in `pip install tfcausal[vis]`; empty where it needs none.
        traceable: Whether its maps are TensorFlow operations all through, so that they can be a part of an exported
            model; the others are computed by a library that works on arrays in Python.
        place: Module and class.
        fixed: Arguments of the class that the name stands for.
    """

    name: str
    description: str
    source: str
    needs: str = ""
    traceable: bool = True
    place: str = field(default="", repr=False)
    fixed: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def explainer_class(self) -> type[Explainer]:
        """Import the class; `InvalidArgument` where the extra that it needs is not installed."""
        module, name = self.place.split(":")
        try:
            kind: type[Explainer] = getattr(import_module(f"tfcausal.saliency.{module}"), name)
        except ModuleNotFoundError as error:
            if not self.needs or str(error.name).startswith("tfcausal"):
                raise
            remedy = f"Install it: `pip install 'tfcausal[{self.needs}]'`."
            received = f"{self.name!r}, which needs {error.name}"
            raise InvalidArgument(message("name", "a method that is installed", received, remedy)) from None
        return kind

    def options(self) -> tuple[str, ...]:
        """The names of the options that it takes beside the model."""
        parameters = [*inspect.signature(self.explainer_class()).parameters][1:]
        return tuple(name for name in parameters if name not in self.fixed)


class ExplainerList(tuple[ExplainerEntry, ...]):
    """The methods; printed as a table."""

    __slots__ = ()

    def __repr__(self) -> str:
        width = max(len(entry.name) for entry in self)
        needs = (f" Needs tfcausal[{entry.needs}]." if entry.needs else "" for entry in self)
        return "\n".join(
            f"{entry.name:<{width}}  {entry.description} {entry.source}.{need}"
            for entry, need in zip(self, needs, strict=True)
        )


def _entries() -> Iterable[ExplainerEntry]:
    yield ExplainerEntry(
        "wbp",
        "Weight with which a pixel enters the logit, times the pixel; sums to the logit but for the biases.",
        "Wang et al. 2020, Proactive Pseudo-Intervention",
        place="wbp:WBP",
    )
    for composite, description, source in _LRP:
        fixed = MappingProxyType({"composite": composite})
        yield ExplainerEntry(f"lrp.{composite}", description, source, place="lrp:LRP", fixed=fixed)
    for name, place, description, source in _OTHERS:
        of_keras_vis = place.startswith("keras_vis:")
        needs = "vis" if of_keras_vis else ""
        yield ExplainerEntry(name, description, source, needs, traceable=not of_keras_vis, place=place)


_LRP = (
    ("epsilon_plus", "LRP: epsilon in dense layers, z+ in convolutions.", "Kohlbrenner et al. 2020"),
    ("epsilon_plus_flat", "LRP: as epsilon_plus, flat in the first layer.", "Kohlbrenner et al. 2020"),
    (
        "epsilon_gamma_box",
        "LRP: epsilon in dense layers, gamma in convolutions, the box rule at the pixels.",
        "Montavon et al. 2019",
    ),
    (
        "epsilon_alpha2_beta1",
        "LRP: epsilon in dense layers, alpha-beta (2, 1) in convolutions.",
        "Kohlbrenner et al. 2020",
    ),
    (
        "epsilon_alpha2_beta1_flat",
        "LRP: as epsilon_alpha2_beta1, flat in the first layer.",
        "Kohlbrenner et al. 2020",
    ),
    ("epsilon", "LRP with the epsilon rule in every layer.", "Bach et al. 2015"),
    ("gamma", "LRP with the gamma rule in every layer.", "Montavon et al. 2019"),
    ("z_plus", "LRP with the z+ rule in every layer: positive contributions only.", "Montavon et al. 2017"),
    ("alpha2_beta1", "LRP with the alpha-beta rule (2, 1) in every layer.", "Bach et al. 2015"),
    ("w_square", "LRP with the w-square rule in every layer: weights alone, not values.", "Montavon et al. 2017"),
    ("flat", "LRP with the flat rule in every layer: where the network looks, not why.", "Lapuschkin et al. 2019"),
)
_OTHERS = (
    ("gradient", "gradients:Gradient", "Slope of the logit at every pixel.", "Simonyan et al. 2014"),
    (
        "gradient_times_input",
        "gradients:GradientTimesInput",
        "Slope of the logit at every pixel, times the pixel.",
        "Shrikumar et al. 2016",
    ),
    ("smoothgrad", "gradients:SmoothGrad", "Mean slope over noisy copies of the image.", "Smilkov et al. 2017"),
    ("vargrad", "gradients:VarGrad", "Variance of the slope over noisy copies of the image.", "Adebayo et al. 2018"),
    (
        "integrated_gradients",
        "gradients:IntegratedGradients",
        "Mean slope on the way from a baseline to the image, times that way; sums to the logit's change.",
        "Sundararajan et al. 2017",
    ),
    (
        "guided_backpropagation",
        "gradients:GuidedBackpropagation",
        "Slope with negative signals stopped at every ReLU; depends little on the class.",
        "Springenberg et al. 2015",
    ),
    (
        "grad_cam",
        "cam:GradCAM",
        "Feature maps of a layer, weighted by their mean slope; coarse, one channel.",
        "Selvaraju et al. 2017",
    ),
    (
        "grad_cam_plus_plus",
        "keras_vis:GradCAMPlusPlus",
        "Grad-CAM with the slopes weighted by place; coarse, one channel.",
        "Chattopadhay et al. 2018",
    ),
    (
        "score_cam",
        "keras_vis:ScoreCAM",
        "Feature maps of a layer, weighted by the score of the image seen through them; coarse, one channel.",
        "Wang et al. 2020, Score-CAM",
    ),
    (
        "layer_cam",
        "keras_vis:LayerCAM",
        "Feature maps of a layer times their positive slopes; coarse, one channel.",
        "Jiang et al. 2021",
    ),
    (
        "occlusion",
        "occlusion:Occlusion",
        "How much the logit falls when a patch is covered; one channel, model agnostic, slow.",
        "Zeiler and Fergus 2014",
    ),
)
_REGISTRY = {entry.name: entry for entry in _entries()}


def available_explainers() -> ExplainerList:
    """Every saliency method.

    Returns:
        One :class:`ExplainerEntry` per method, with its name, one line about it and its source; prints as a table.

    Example:
        >>> [entry.name for entry in available_explainers() if "CAM" in entry.source + entry.description]
        ['grad_cam_plus_plus', 'score_cam']
    """
    return ExplainerList(_REGISTRY.values())


def find_explainer(name: str) -> ExplainerEntry:
    """Look a method up, without importing it.

    Args:
        name: Its name in configurations.

    Returns:
        Its entry.

    Raises:
        InvalidArgument: No method has this name; the message gives the closest names.

    Example:
        >>> find_explainer("occlusion").source
        'Zeiler and Fergus 2014'
    """
    if isinstance(name, str) and name in _REGISTRY:
        return _REGISTRY[name]
    close = difflib.get_close_matches(name, _REGISTRY, n=3, cutoff=0.5) if isinstance(name, str) else []
    remedy = f"Did you mean {' or '.join(f'`{word}`' for word in close)}?" if close else ""
    remedy = remedy or f"There are {', '.join(_REGISTRY)}."
    raise InvalidArgument(message("name", "the name of a saliency method", repr(name), remedy))


def get_explainer(name: str, model: keras.Model, **options: Any) -> Explainer:
    """Make the explainer of a method for a model.

    Args:
        name: Name of the method, one of :func:`available_explainers`.
        model: A Keras classifier.
        **options: Options of the method, such as `output`, `batch_size`, `layer`, `patch` or `baseline`.

    Returns:
        The explainer; call it with images and targets.

    Raises:
        InvalidArgument: No method has this name, or the method does not take an option; or as the method raises.
        UnsupportedOperation: The method does not take this model.

    Example:
        >>> import keras, numpy as np
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer="ones")])
        >>> get_explainer("wbp", model, batch_size=8)(np.array([[3.0, -1.0]], "float32")).tolist()
        [[3.0, -1.0]]
    """
    entry = find_explainer(name)
    taken = entry.options()
    for option in options:
        if option not in taken:
            close = difflib.get_close_matches(option, taken, n=1)
            remedy = f"Did you mean `{close[0]}`?" if close else ""
            raise InvalidArgument(message("options", f"options of {name} ({', '.join(taken)})", repr(option), remedy))
    return entry.explainer_class()(model, **entry.fixed, **options)


def with_bounds(name: str, pixels: tuple[float, float], options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Options of a method with the bounds of the pixels, if it takes any (`low` and `high`, for LRP's z-box rule).

    Args:
        name: Name of the method.
        pixels: What black and white are in the model's input, in this or the other order.
        options: The options that are given already; they win.

    Raises:
        InvalidArgument: No method has this name.

    Example:
        >>> with_bounds("lrp.epsilon", (-1.0, 1.0)), with_bounds("wbp", (-1.0, 1.0))
        ({'low': -1.0, 'high': 1.0}, {})
    """
    low, high = sorted(pixels)
    bounds = {"low": low, "high": high} if {"low", "high"}.issubset(find_explainer(name).options()) else {}
    return {**bounds, **(options or {})}


def register_rule(
    kind: type | Callable[..., Any],
    method: str = "wbp",
    offset: Offset | None = None,
    steers: Callable[[Any], tuple[bool, ...]] | None = None,
    inference_only: bool = False,
) -> Callable[[Backward], Backward]:
    """Teach WBP or LRP a layer of your own: a decorator for the function that carries a message back through it.

    The function gets a :class:`~tfcausal.saliency.propagation.Step`, which is one call of the layer with `step.layer`,
    `step.inputs` and `step.outputs`, and the message at the layer's output: for WBP the weights of the chosen logit,
    for LRP its relevance. It gives a tuple with one message for every input, each in the input's shape.

    Args:
        kind: A subclass of keras.layers.Layer, or a function of `keras.ops`. Subclasses that override nothing of the
            forward pass use the rule too.
        method: `wbp` or `lrp`.
        offset: For a layer with an additive constant: takes the same arguments, gives what the constant contributes to
            every sample, (N,).
        steers: For a layer of which some inputs only steer, such as a gate: takes the operation, tells for every input
            whether it steers; the rule gives None for those.
        inference_only: Whether the rule holds at inference only, because the layer draws at random in training.

    Returns:
        The decorator; it gives the function back unchanged.

    Raises:
        InvalidArgument: An unknown method; neither a class of layers nor a function of `keras.ops`; there is a rule
            for it already.

    Example:
        >>> import keras, numpy as np
        >>> class Doubled(keras.layers.Layer):
        ...     def call(self, inputs):
        ...         return 2.0 * inputs
        >>> @register_rule(Doubled)
        ... def doubled(step, cotangent):
        ...     return (2.0 * cotangent,)
        >>> model = keras.Sequential([keras.Input((2,)), Doubled()])
        >>> get_explainer("wbp", model)(np.array([[3.0, 5.0]], "float32"), [1]).tolist()
        [[0.0, 10.0]]
    """
    from tfcausal.saliency.propagation import Rule

    table = _rule_table(method)

    def register(backward: Backward) -> Backward:
        rule = Rule(backward, offset, inference_only=inference_only)
        table.register(kind, rule if steers is None else replace(rule, steers=steers))
        return backward

    return register


def _rule_table(method: str) -> RuleTable:
    modules = {"wbp": "wbp_rules", "lrp": "lrp_rules"}
    if method not in modules:
        raise InvalidArgument(message("method", f"one of {', '.join(modules)}", repr(method)))
    table: RuleTable = import_module(f"tfcausal.saliency.{modules[method]}").RULES
    return table
