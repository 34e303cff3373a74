"""What the concepts are set to by an intervention, and how often they have about these values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tfcausal.effects.engine import InterventionEngine
from tfcausal.effects.results import IMAGE, Node, concepts_of
from tfcausal.errors import InvalidArgument, message
from tfcausal.saliency.arguments import check_integer

Values = Literal["zero", "mean", "range", "sampled"] | float | Sequence[float]
_NAMES = ("zero", "mean", "range", "sampled")


@dataclass(frozen=True)
class Settings:
    """The values of all concepts.

    Attributes:
        name: `zero`, `mean`, `range`, `sampled` or `values`.
        values: (1, values, K) for all images the same, or (N, values, K), one set for every image, float32.
        edges: Between which of the values a code is nearest to one and the next, (K, values - 1); none for sampled.
    """

    name: str
    values: np.ndarray
    edges: np.ndarray

    def columns(self, nodes: Sequence[Node]) -> np.ndarray:
        """The value that every node is set to, (nodes, values); NaN where it is not one number."""
        table = np.full((len(nodes), self.values.shape[1]), np.nan)
        if self.name != "sampled":
            for row, node in zip(table, nodes, strict=True):
                own = self.values[0][:, list(concepts_of(node))]
                row[:] = np.where((own == own[:, :1]).all(axis=1), own[:, 0], np.nan)
        return table

    def frequencies(self, nodes: Sequence[Node], counts: np.ndarray) -> np.ndarray:
        """How often each node has about each value, (nodes, values), from the counts (K, values) of codes."""
        total = self.values.shape[1]
        if self.name == "sampled" or total == 1:
            return np.full((len(nodes), total), 1 / total)
        chosen = counts[[concepts_of(node)[0] for node in nodes]]
        return chosen / chosen.sum(axis=1, keepdims=True)


def settings(
    values: Values,
    points: int,
    seed: int,
    engine: InterventionEngine,
    images: np.ndarray,
    nodes: Sequence[Node],
    distribution_images: np.ndarray | None = None,
) -> Settings:
    """What `values` stands for with these images, or with others that are to say what the concepts are like.

    Raises:
        InvalidArgument: Unknown values, or such as do not go with the nodes or the number of images.
    """
    check_integer("seed", seed, 0)
    source = images if distribution_images is None else distribution_images
    concepts = engine.concepts.concepts
    if isinstance(values, str):
        if values not in _NAMES:
            expected = f"{', '.join(_NAMES)}, a number, or different finite numbers"
            raise InvalidArgument(message("values", expected, repr(values)))
        if values == "zero":
            return _fixed("zero", np.zeros((1, concepts), np.float32))
        if values == "sampled":
            check_integer("points", points)
            if distribution_images is None:
                return _sampled(points, seed, engine, images)
            return _sampled_elsewhere(points, seed, engine, source)
        several = values == "range"
        check_integer("points", points, 2 if several else 1)
        _refuse_joint(several, values, nodes)
        distribution = engine.distribution(source, np.zeros((len(source), 0), np.float32))
        if values == "mean":
            return _fixed("mean", distribution.mean[None])
        return _fixed("range", np.linspace(distribution.lowest, distribution.highest, points, dtype=np.float32))
    numbers = _numbers(values)
    _refuse_joint(len(numbers) > 1, f"{len(numbers)} numbers", nodes)
    return _fixed("values", np.repeat(numbers[:, None], concepts, axis=1))


def _fixed(name: str, values: np.ndarray) -> Settings:
    """The same values (values, K), ascending, for all images."""
    edges = ((values[1:].astype(np.float64) + values[:-1]) / 2).T
    return Settings(name, values[None], np.ascontiguousarray(edges, np.float32))


def _sampled(points: int, seed: int, engine: InterventionEngine, images: np.ndarray) -> Settings:
    """Codes of other images at random places: all concepts of a draw come from the same place."""
    count = len(images)
    if count < 2:
        remedy = "Values are sampled from the other images."
        raise InvalidArgument(message("images", "at least two images for sampled values", count, remedy))
    random = np.random.default_rng(seed)
    distribution = engine.distribution(images, random.random((count, points), np.float32))
    other = (np.arange(count)[:, None] + random.integers(1, count, (count, points))) % count
    values = distribution.drawn[other, np.arange(points)]
    return Settings("sampled", values, np.zeros((engine.concepts.concepts, 0), np.float32))


def _sampled_elsewhere(points: int, seed: int, engine: InterventionEngine, images: np.ndarray) -> Settings:
    """Codes at random places of images of their own: the same draws for every image that is intervened on."""
    random = np.random.default_rng(seed)
    image = random.integers(0, len(images), points)
    # Only the images drawn are needed, one draw from each.
    distribution = engine.distribution(images[image], random.random((points, 1), np.float32))
    return Settings("sampled", distribution.drawn[:, 0][None], np.zeros((engine.concepts.concepts, 0), np.float32))


def _numbers(values: object) -> np.ndarray:
    """Numbers given by the user, ascending, float32."""
    expected = f"{', '.join(_NAMES)}, a number, or different finite numbers"
    try:
        given = np.atleast_1d(np.asarray(values))
        # True is no number, also not beside one, with which an array would make it 1.
        with np.errstate(over="ignore"):
            numbers = given.astype(np.float32)
        elements = np.ravel(np.asarray(values, object))
    except (TypeError, ValueError, OverflowError):
        raise InvalidArgument(message("values", expected, repr(values))) from None
    if given.dtype.kind not in "fiu" or any(isinstance(element, (bool, np.bool_)) for element in elements):
        raise InvalidArgument(message("values", expected, repr(values)))
    different = len(np.unique(numbers)) == numbers.size
    if numbers.ndim != 1 or not numbers.size or not np.isfinite(numbers).all() or not different:
        raise InvalidArgument(message("values", expected, repr(values)))
    return np.sort(numbers)


def _refuse_joint(several: bool, values: str, nodes: Sequence[Node]) -> None:
    """Several concepts have no order in which their values could be counted together."""
    joint = [node for node in nodes if len(concepts_of(node)) > 1]
    if several and joint:
        remedy = "Use one value, or sampled ones."
        raise InvalidArgument(message("values", f"one value for the joint node {joint[0]}", values, remedy))


def checked_nodes(nodes: object, concepts: int) -> tuple[Node, ...]:
    """The nodes to intervene on: every concept alone where None, else indices or tuples of them.

    Raises:
        InvalidArgument: No node, a node twice, or an index that is no concept.
    """
    if nodes is None:
        return tuple(range(concepts))
    expected = f"indices of concepts in [0, {concepts - 1}], or tuples of them for joint interventions, each once"
    if not isinstance(nodes, (list, tuple, range, np.ndarray)) or len(nodes) == 0:
        raise InvalidArgument(message("nodes", expected, repr(nodes)))
    checked: list[Node] = []
    for node in nodes:
        members = tuple(node) if isinstance(node, (list, tuple)) else (node,)
        whole = all(isinstance(member, (int, np.integer)) and not isinstance(member, bool) for member in members)
        if not members or not whole or not all(IMAGE < member < concepts for member in members):
            raise InvalidArgument(message("nodes", expected, repr(node)))
        indices = tuple(sorted(int(member) for member in members))
        if len(set(indices)) < len(indices):
            raise InvalidArgument(message("nodes", expected, repr(node)))
        checked.append(indices if len(indices) > 1 else indices[0])
    if len(set(checked)) < len(checked):
        raise InvalidArgument(message("nodes", expected, repr(nodes)))
    return tuple(checked)


def members(nodes: Sequence[Node], concepts: int) -> np.ndarray:
    """Which concepts every node has, booleans (nodes, K)."""
    table = np.zeros((len(nodes), concepts), bool)
    for row, node in zip(table, nodes, strict=True):
        row[list(concepts_of(node))] = True
    return table
