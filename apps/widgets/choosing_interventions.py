"""What is done to a picture or to the concepts of a network: the choices, and the changed picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import streamlit as st

from tfcausal.config_attacks import LARGEST_JSMA_IMAGE
from tfcausal.data.mask_drawing import drawn_mask
from widgets import address, drawing_regions, frame
from widgets import cached_intervening as cached
from widgets.wording import plain

if TYPE_CHECKING:
    from tfcausal.browsing.concept_levels import Level
    from tfcausal.browsing.interventions import Interventions

KINDS = {"mask": "mask a region", "attack": "attack", "none": "none"}
REGIONS, BLOCKS, CAUSE, REST = "regions", "blocks", "cause", "rest"
MASKS = {
    REGIONS: "regions that I draw",
    BLOCKS: "blocks at random",
    CAUSE: "the known cause",
    REST: "everything but the known cause",
}
ATTACKS = {
    "fgsm": "FGSM, one step",
    "bim": "BIM, several steps",
    "pgd": "PGD, from a random start",
    "jsma": "JSMA, few pixels; slow",
}


@dataclass(frozen=True)
class Subject:
    """What is intervened on.

    Attributes:
        identity: What tells the classifier, its pixels and its levels from all others.
        of: What intervenes.
        image: The picture as the classifier takes it, (height, width, channels).
        mask: The known cause, bool (height, width); None where it is not known.
        class_names: Names of the classes, by index.
    """

    identity: cached.Identity
    of: Interventions
    image: np.ndarray
    mask: np.ndarray | None
    class_names: Sequence[str]

    @property
    def picture(self) -> np.ndarray:
        """The picture for the eye, in [0, 1]."""
        return self.seen(self.image)

    def seen(self, image: np.ndarray) -> np.ndarray:
        """A picture as the classifier takes it, for the eye."""
        black, white = self.of.classifier.pixels
        return np.clip((image - black) / (white - black), 0.0, 1.0)


@dataclass(frozen=True)
class Change:
    """What was done to the picture.

    Attributes:
        image: The changed picture as the classifier takes it; the same one where nothing was done.
        words: What was done; empty for nothing.
        is_attack: Whether every pixel can have changed.
    """

    image: np.ndarray
    words: str = ""
    is_attack: bool = False


@dataclass(frozen=True)
class Zeroed:
    """The concepts that are taken away.

    Attributes:
        level: The level; None for none.
        nodes: Its concepts.
        words: What was done; empty for nothing.
        note: How well the network answers through the autoencoder; empty where there is none.
    """

    level: str | None = None
    nodes: tuple[int, ...] = ()
    words: str = ""
    note: str = ""


def change_image(subject: Subject) -> Change:
    """Let the user choose what is done to the picture, and do it."""
    kind = address.segments("intervention", "On the picture", list(KINDS), format_func=KINDS.__getitem__)
    change = Change(subject.image)
    with frame.shown_errors():
        if kind == "mask":
            change = _masked(subject)
        elif kind == "attack":
            change = _attacked(subject)
    if kind != "mask" or address.remembered("masking") != REGIONS:
        known = "" if subject.mask is None else ", with its known cause outlined"
        _picture(subject, f"The picture as it is{known}")
    return change


def zero_concepts(subject: Subject) -> Zeroed:
    """Let the user choose which concepts are taken away."""
    names = {level.name: level for level in subject.of.levels}
    if not names:
        st.caption("This model has no convolution whose channels could be taken away.")
        return Zeroed()
    name = address.optional(
        "level",
        "Set concepts to zero",
        list(names),
        format_func=lambda key: _spoken(names[key]),
        nothing="none",
        help="Learned concepts are those of `tfcausal effects`; without them the channels of a convolution are taken.",
    )
    if name is None:
        return Zeroed()
    with frame.shown_errors():
        with st.spinner("Measuring the effect of each concept", show_time=True):
            effects = cached.concept_effects(subject.identity, subject.of, subject.image, name)
            outputs = cached.compare(subject.identity, subject.of, subject.image, None, None, ()).network
        index = int(outputs.argmax())
        order = np.argsort(-np.abs(effects[:, index]), kind="stable")
        of_class = plain(subject.class_names[index])
        chosen = address.several(
            f"concept {name}",  # a number stands for another concept at another level
            "Concepts",
            [str(node) for node in order],
            [str(order[0])],
            format_func=lambda node: f"{node} ({effects[int(node), index]:+.2f})",
            help=f"In brackets: the effect of taking it away alone on class {of_class}, in the picture as it was.",
        )
        nodes = tuple(sorted(map(int, chosen)))
        if nodes:
            many = "concepts" if len(nodes) > 1 else "concept"
            words = f"set {many} {', '.join(map(str, nodes))} of {plain(names[name].layer)} to zero"
            return Zeroed(name, nodes, words, names[name].agreement)
    return Zeroed()


def _masked(subject: Subject) -> Change:
    height, width = size = subject.image.shape[0], subject.image.shape[1]
    sources = list(MASKS) if subject.mask is not None else [REGIONS, BLOCKS]
    places = st.columns(2, vertical_alignment="bottom")
    with places[0]:
        source = address.select("masking", "What to mask", sources, format_func=MASKS.__getitem__)
    with places[1]:
        value = address.slider(
            "masked_value", "Masked pixels become", 0.0, 1.0, 0.5, 0.05, help="0 is black, 1 is white."
        )
    if source == REGIONS:
        mask = drawn_mask(drawing_regions.draw(subject.picture), height, width)
    elif source == BLOCKS:
        mask = _blocks(size)
    else:
        mask = np.asarray(subject.mask, bool) ^ (source == REST)
    if not mask.any():
        st.caption("Draw on the picture with the mouse, or add a rectangle and set its edges: it is masked at once.")
        return Change(subject.image)
    what = {REGIONS: "", BLOCKS: " in blocks at random", CAUSE: ", the known cause", REST: ", all but the known cause"}
    words = f"masked {mask.mean():.1%} of the picture{what[source]}"
    return Change(subject.of.masked(subject.image, mask, value), words)


def _blocks(size: tuple[int, int]) -> np.ndarray:
    from tfcausal.interventions.masking import random_blocks

    places = st.columns(3, vertical_alignment="bottom")
    most = float(min(*size, 32))
    with places[0]:
        share = address.slider("share", "Share of the area", 0.05, 1.0, 0.1, 0.05)
    with places[1]:
        blocks = int(address.slider("blocks", "Blocks per side", 1.0, most, min(10.0, most), 1.0, format="%d"))
    with places[2]:
        seed = int(address.slider("block_seed", "Draw", 0.0, 50.0, 0.0, 1.0, format="%d"))
    return random_blocks(1, size, share, (blocks, blocks), seed)[0, ..., 0] > 0


def _attacked(subject: Subject) -> Change:
    names = [name for name in ATTACKS if name != "jsma" or subject.image.size <= LARGEST_JSMA_IMAGE]
    places = st.columns(2, vertical_alignment="bottom")
    with places[0]:
        name = address.select("attack", "Attack", names, format_func=ATTACKS.__getitem__)
    with places[1]:
        eps = address.slider(
            "eps",
            "Strength",
            0.005,
            0.3,
            0.05,
            0.005,
            format="%.3f",
            help="Largest change of a pixel, as a share of black to white; for JSMA the change of a pixel at a time.",
        )
    steps, seed = 10, 0
    if name in ("bim", "pgd"):
        places = st.columns(2, vertical_alignment="bottom")
        with places[0]:
            steps = int(address.slider("steps", "Steps", 1.0, 40.0, 10.0, 1.0, format="%d"))
        if name == "pgd":
            with places[1]:
                seed = int(address.slider("start", "Random start", 0.0, 50.0, 0.0, 1.0, format="%d"))
    with st.spinner("Attacking", show_time=True):
        image = cached.attacked(subject.identity, subject.of, subject.image, name, eps, steps, seed)
    return Change(image, f"attacked by {name.upper()} with strength {eps:g}", is_attack=True)


def _picture(subject: Subject, alt: str) -> None:
    from tfcausal.figures import outlined
    from widgets import pictures

    with st.container(width=drawing_regions.SIDE):
        pictures.show(outlined(subject.picture, subject.mask), alt, side=drawing_regions.SIDE)


def _spoken(level: Level) -> str:
    return f"{level.layer}: {'channels' if level.autoencoder is None else 'learned concepts'}"
