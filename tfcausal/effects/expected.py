"""Expected causal effects of concepts: what happens to the answer when one is taken away or set to another value."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from tfcausal import keras_api
from tfcausal.effects.agreement import agreement_of
from tfcausal.effects.channels import Concepts
from tfcausal.effects.engine import InterventionEngine, checked_images
from tfcausal.effects.equations import SIGNS, Head, Sign, effect, expected_effect, posterior_weighted
from tfcausal.effects.results import EffectResult, EffectSummary, Node, Scale
from tfcausal.effects.values import Values, checked_nodes, members, settings
from tfcausal.errors import InvalidArgument, message
from tfcausal.graph import OperationGraph

__all__ = ["ConceptEffects", "EffectResult", "EffectSummary", "effect", "expected_effect", "posterior_weighted"]

Reference = Literal["autoencoder", "model"]
_REFERENCES = ("autoencoder", "model")


class ConceptEffects:
    """Causal effects of the concepts of a layer on the answers of a classifier; call it with images.

    To intervene on a concept is to set its whole feature map, for an image, to one value; the decoder and the rest of
    the network then answer. Zero is the papers' *zero-out*. The effect is equation 1, its mean over images and values
    equation 2 (:meth:`EffectResult.summary`).

    What the papers' tables put side by side is a matter of which images go in:

    - `Z_0`, zero-out: ``effects(images)``.
    - `F_i = PWM` or `F_j = FGSM`, zero-out on masked or attacked images: ``effects(changed)``, whose observed answers
      are those to the changed images, too.
    - both interventions together against nothing done: ``effects(changed, observed_images=images)``.
    - the image intervention alone: :class:`tfcausal.effects.image_effects.ImageEffects`.

    Departures from the authors' code: the network is frozen and at inference, the concept is set after the autoencoder
    was trained and not while, and the effect refers to the network through the untouched autoencoder unless asked
    otherwise, so that what the autoencoder cannot reconstruct is no effect of a concept.

    Source: C.-H. H. Yang et al., *When causal intervention meets adversarial examples and image masking for deep neural
    networks*, ICIP 2019, equations 1 and 2; M. Harradon, J. Druce and B. Ruttenberg, *Causal learning and explanation
    of deep neural networks via autoencoded activations*, 2018.

    Args:
        concepts: A trained `ConceptAutoencoder`, or :class:`tfcausal.effects.channels.ChannelConcepts`.
        reference: What an effect refers to: `autoencoder`, the network through the untouched autoencoder: doing nothing
            has an effect of exactly 0; `model`, the network itself: the error of the autoencoder is part of every
            effect, also of that of a dead concept.
        sign: `do_minus_observed`, equation 1, or `observed_minus_do`.
        batch_size: Images per pass up to the layer and rows per pass behind it; None chooses by the model's size. It
            changes an effect by rounding alone.

    Raises:
        InvalidArgument: Unknown `reference` or `sign`, or `batch_size` is not a positive integer.

    Example:
        >>> import keras
        >>> from tfcausal.effects.channels import ChannelConcepts
        >>> inputs = keras.Input((2, 2, 2))
        >>> maps = keras.layers.Activation("relu", name="maps")(inputs)
        >>> head = keras.layers.Dense(1, activation="sigmoid")
        >>> model = keras.Model(inputs, head(keras.layers.GlobalAveragePooling2D()(maps)))
        >>> head.set_weights([np.array([[2.0], [0.0]]), np.zeros(1)])
        >>> effects = ConceptEffects(ChannelConcepts(model, "maps"))
        >>> summary = effects(np.ones((3, 2, 2, 2))).summary()
        >>> [round(summary.estimate(node).value, 3) for node in (0, 1)]
        [-0.381, 0.0]
    """

    def __init__(
        self,
        concepts: Concepts,
        reference: Reference = "autoencoder",
        sign: Sign = "do_minus_observed",
        batch_size: int | None = None,
    ) -> None:
        if reference not in _REFERENCES:
            raise InvalidArgument(message("reference", " or ".join(_REFERENCES), repr(reference)))
        if sign not in SIGNS:
            raise InvalidArgument(message("sign", " or ".join(SIGNS), repr(sign)))
        self.concepts, self.reference, self.sign = concepts, reference, sign
        self.engine = InterventionEngine(concepts, batch_size)
        self.head = head_kind(concepts.downstream.graph)

    def __call__(
        self,
        images: object,
        nodes: Sequence[Node] | None = None,
        values: Values = "zero",
        points: int = 5,
        observed_images: object = None,
        scale: Scale = "probability",
        classes: Sequence[int] | None = None,
        seed: int = 0,
        distribution_images: object = None,
    ) -> EffectResult:
        """Intervene on every node with every value, in every image.

        The values of a concept are those of its code at all places of all images, or of `distribution_images`; P(X = x)
        of equation 2 is the share of them that is nearest to x. `mean`, `range` and `sampled`, and frequencies from
        images of their own, take a pass over these images.

        Args:
            images: (N, height, width, channels) in the model's input space.
            nodes: Concepts by index; a tuple of them is set together. None: every concept alone.
            values: `zero`; a number; several different numbers; `mean`; `range`, equally spaced from the smallest to
                the largest; or `sampled`, in each image the values at places drawn from the other images.
            points: How many values for `range` and `sampled`.
            observed_images: Images that the observed answers are given to, one for each of `images`, which were made
                from them by masking or attacking; None: `images`.
            scale: `probability`, the output of the model, or `logit`, before its softmax or sigmoid: an effect on the
                evidence for one class that a softmax does not pass on to the others.
            classes: The classes whose effects are kept; None for all. With a thousand classes and hundreds of nodes,
                the result is what takes the memory.
            seed: Seed of the sampled values, 0 or more.
            distribution_images: Images that say which values the concepts have and how often, such as those of the
                training: with them an image's effects do not depend on the other images of the call, so that the same
                intervention is made in clean and in attacked images. `sampled` then draws `points` places from them,
                the same for all images. None: `images` themselves.

        Returns:
            The answers image by image, from which :meth:`EffectResult.summary` makes means with intervals. A concept
            that has the same value at all places of all `images` is `dead`. An intervention that sets it to this value
            leaves the codes as they are: zero-out where the value is 0, and `mean`, `range` and `sampled` of the images
            themselves. With `reference="autoencoder"` its effect is exactly 0; with `reference="model"` it is what the
            untouched autoencoder alone does to the answer, exactly `untouched - observed`, as for any concept left
            alone. (Changed images against `observed_images` bring their own difference.) Another value, given as a
            number or by `distribution_images`, is an intervention like any other.

        Raises:
            InvalidArgument: The autoencoder is not trained; images that the model does not take, or `observed_images`
                of another number; nodes, values, points, classes or a seed outside their range; sampled values with
                one image.

        Warns:
            UserWarning: The network does not answer to these images through the autoencoder as it does without it
                (:func:`tfcausal.effects.agreement.agreement_of`, with its default thresholds); the effects are then
                those of another network, and `causal` is False.
        """
        if not self.concepts.trained:
            remedy = "Call its `fit` first."
            raise InvalidArgument(message("concepts", "a trained autoencoder", "an untrained one", remedy))
        if scale not in ("probability", "logit"):
            raise InvalidArgument(message("scale", "probability or logit", repr(scale)))
        downstream = self.concepts.downstream
        array = checked_images(images, downstream.graph)
        kept = checked_classes(classes, downstream.graph.num_classes)
        chosen = checked_nodes(nodes, self.concepts.concepts)
        observed = None if observed_images is None else checked_pairs(observed_images, array, downstream.graph)
        source = None
        if distribution_images is not None:
            source = checked_images(distribution_images, downstream.graph, "distribution_images")
        setting = settings(values, points, seed, self.engine, array, chosen, source)
        groups = members(chosen, self.concepts.concepts)
        edges, counts = setting.edges, None
        if source is not None and edges.shape[1]:
            edges, counts = edges[:, :0], self.engine.counts(source, edges)
        answers = self.engine.answers(array, groups, setting.values, edges, kept, scale == "logit")
        agreement = agreement_of(answers.model[0], answers.untouched[0], self.concepts.head)
        if not agreement.faithful:
            warnings.warn(agreement.text, UserWarning, stacklevel=2)
        model, untouched = answers.model, answers.untouched
        if observed is not None:
            model, untouched = self.engine.untouched(observed)
        logits, outputs = model if self.reference == "model" else untouched
        constant = answers.lowest == answers.highest
        return EffectResult(
            observed=(logits if scale == "logit" else outputs)[:, kept],
            intervened=answers.intervened,
            untouched=answers.untouched[0 if scale == "logit" else 1][:, kept],
            posterior=outputs,
            head=self.head,
            nodes=chosen,
            values=setting.columns(chosen),
            frequencies=setting.frequencies(chosen, answers.counts if counts is None else counts),
            dead=np.array([constant[group].all() for group in groups]),
            classes=kept,
            intervention=setting.name,
            sign=self.sign,
            reference=self.reference,
            scale=scale,
            agreement=agreement,
            codes=np.stack([answers.lowest, answers.highest], axis=1),
        )


def head_kind(graph: OperationGraph) -> Head:
    """What stands behind the logits of a classifier."""
    last = graph.producer(graph.output)
    if graph.output == graph.logits or last is None:
        return "linear"
    return "softmax" if keras_api.is_softmax(last.layer) else "sigmoid"


def checked_classes(classes: Any, total: int, name: str = "classes") -> np.ndarray:
    """Class indices as an array; all of them where None.

    Raises:
        InvalidArgument: No class, one twice, or one that the model does not have.
    """
    if classes is None:
        return np.arange(total)
    array = np.asarray(classes)
    wrong = array.ndim != 1 or not array.size or array.dtype.kind not in "iu"
    if wrong or array.min() < 0 or array.max() >= total or len(np.unique(array)) < len(array):
        raise InvalidArgument(message(name, f"class indices in [0, {total - 1}], each once", repr(classes)))
    return array.astype(np.int64)


def checked_pairs(observed_images: object, images: np.ndarray, graph: OperationGraph) -> np.ndarray:
    """The images that the observed answers are given to, one for each image.

    Raises:
        InvalidArgument: Another shape than that of `images`, or as for them.
    """
    observed = checked_images(observed_images, graph, "observed_images")
    if observed.shape != images.shape:
        expected = f"an image for every image, of shape {images.shape}"
        raise InvalidArgument(message("observed_images", expected, f"shape {observed.shape}"))
    return observed
