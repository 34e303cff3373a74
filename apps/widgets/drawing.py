"""What a person draws on one image and has not saved yet, the canvas for it, and the actions of buttons and keys.

The canvas sends a stroke a moment after the mouse is let go. An action therefore waits until that moment is over: what
was drawn last is saved or undone, too.

Streamlit ends a script wherever it touches the screen or the session's state as soon as the browser has sent something,
and begins it anew while the old one still runs. All that an action changes is therefore in one object, which is held
while it is changed, and counts its changes: a script that finds more of them than at its beginning begins anew.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from threading import RLock

import streamlit as st
from streamlit_drawable_canvas import st_canvas

from tfcausal.browsing.canvas import ADDS, CUTS, OUTLINE, from_canvas, to_canvas
from tfcausal.data.mask_drawing import Shape, drawn_mask
from tfcausal.data.mask_folder import MaskFolder
from tfcausal.errors import DataError, TfCausalError
from widgets import address

TOOLS = {"polygon": "polygon", "box": "rect", "brush": "freedraw"}
"""Tools, and what the canvas calls them."""
ACTIONS = ("undo", "clear", "save", "previous", "next")
_SECONDS_TO_SEND = 0.35
_SECONDS_LATE = 3.0
_KEY = "drawing-desk"


@dataclass
class Drawing:
    """What is drawn on an image and not saved yet.

    Attributes:
        folder: The folder of the image.
        image: Its name.
        shapes: What is drawn, first to last, in picture coordinates.
        size: Height and width of the image; None before it was shown.
        replace: Whether a mask that is there may be replaced.
        since: When the image was shown, on the monotonic clock.
        saved: How often it has been saved since.
    """

    folder: MaskFolder
    image: str
    shapes: tuple[Shape, ...] = ()
    size: tuple[int, int] | None = None
    replace: bool = False
    since: float = field(default_factory=time.monotonic)
    saved: int = 0
    _on_canvas: tuple[Shape, ...] = ()  # with which the canvas began
    _canvas: int = 0
    _side: int = 0

    def put(self, shapes: tuple[Shape, ...]) -> None:
        """Change what is drawn by something else than the canvas, which then begins anew with it."""
        self.shapes = self._on_canvas = shapes
        self._canvas += 1

    def save(self, until: float) -> str:
        """Save the mask.

        Args:
            until: When the person was ready, on the monotonic clock.

        Returns:
            What was done, as a sentence.

        Raises:
            TfCausalError: It was not saved.
        """
        if not self.shapes or self.size is None:
            raise DataError("Nothing is drawn yet: draw around the cause before you save.")
        mask, seconds = drawn_mask(self.shapes, *self.size), max(0.0, until - self.since)
        path = self.folder.save(self.image, mask, seconds, self.replace)
        self.put(())
        self.replace, self.saved, self.since = False, self.saved + 1, time.monotonic()
        return f"Saved {path.relative_to(self.folder.root).as_posix()}: {mask.mean():.1%} of it, in {seconds:.0f} s."


@dataclass
class Desk:
    """What a session is doing on the page of masks.

    Attributes:
        drawing: What is being drawn; None before the first image.
        said: Whether the last action went well, and what is to be said about it.
        asked: When the last action was asked for, on the monotonic clock.
        changes: How often something was changed by an action.
        held: To be held while something is changed.
    """

    drawing: Drawing | None = None
    said: tuple[bool, str] | None = None
    asked: float = 0.0
    changes: int = 0
    held: RLock = field(default_factory=RLock)
    _actions: list[str] = field(default_factory=list)
    _batch: int = 0
    _run: int = 0
    _target: str = ""
    _until: float = 0.0

    def begin(self, folder: MaskFolder, image: str) -> Drawing:
        """Go on with an image, or begin with another one."""
        with self.held:
            drawing = self.drawing
            if drawing is None or drawing.image != image or drawing.folder.root != folder.root:
                drawing = self.drawing = Drawing(folder, image)
            drawing.folder = folder  # the list of its images may be newer
            return drawing

    def ask(self, action: str) -> None:
        """Note that a button or a key was pressed; the callback of a button.

        What is pressed while a script runs is handed over together before the next one, in no known order: then what
        changes the drawing comes first, and what leaves the image last.
        """
        with self.held:
            self.asked = time.monotonic()
            if self._run != address.run_number():
                self._run, self._batch = address.run_number(), len(self._actions)
            self._actions[self._batch :] = sorted([*self._actions[self._batch :], action], key=ACTIONS.index)

    def wait(self) -> None:
        """Wait until the canvas has sent what was drawn before the last action; at the end of a page."""
        if self._actions:
            rest = self.asked + _SECONDS_TO_SEND - time.monotonic()
            if rest > 0:
                time.sleep(rest)
                st.rerun()

    def take(self) -> list[str]:
        """The actions that were asked for, first to last, which are to be done now."""
        actions, self._actions, self._batch = self._actions, [], 0
        self.changes += len(actions)
        return actions

    def go_to(self, image: str) -> None:
        """Show another image when the page is drawn next."""
        self._target, self._until = image, time.monotonic() + _SECONDS_LATE

    def target(self, shown: str) -> str:
        """The image to show instead of what the link says, which can be an old link that came late.

        Args:
            shown: What the link says.
        """
        return self._target if self._target and time.monotonic() < self._until else shown

    def save(self) -> bool:
        """Save what is drawn, note how it went, and say whether it went well."""
        if self.drawing is None:
            return False
        try:
            self.said = (True, self.drawing.save(max(self.asked, self.drawing.since)))
        except TfCausalError as error:
            self.said = (False, f"Not saved: {error}")
            return False
        return True


def desk() -> Desk:
    """What this session is doing."""
    return st.session_state.setdefault(_KEY, Desk())


def canvas(drawing: Drawing, background: tuple[bytes, int, int], tool: str, cut: bool, brush: float) -> None:
    """Let the person draw.

    Args:
        drawing: What is drawn; the canvas changes its shapes.
        background: A PNG, its width and its height.
        tool: One of `TOOLS`.
        cut: Whether shapes take away from the mask.
        brush: Width of the brush in pixels of the image.

    Raises:
        InvalidArgument: The browser sent something else than shapes.
    """
    content, width, height = background
    rows, columns = drawing.size or (height, width)
    across, down = columns / width, rows / height
    if width != drawing._side:
        drawing._side = width
        drawing.put(drawing.shapes)
    colour, number = CUTS if cut else ADDS, drawing._canvas
    result = st_canvas(
        fill_color=colour,
        stroke_color=colour,
        stroke_width=max(1, round(brush / across)) if tool == "brush" else OUTLINE,
        background_image=content,
        width=width,
        height=height,
        drawing_mode=TOOLS[tool],
        initial_drawing={"objects": to_canvas(drawing._on_canvas, across, down)},
        key=f"canvas-{drawing.image}-{number}",
    )
    if drawing._canvas != number:  # an action of a script that ended meanwhile has changed it
        return
    if result.json_data:
        drawing.shapes = from_canvas(result.json_data.get("objects", ()), across, down)
    elif drawing.shapes != drawing._on_canvas:  # the page was left and is shown again
        drawing.put(drawing.shapes)
        st.rerun()
