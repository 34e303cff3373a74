"""Masks: draw the cause on a sample of the images of a folder, for training."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import streamlit as st

from tfcausal.browsing.mask_sample import Sampled, next_position
from tfcausal.browsing.overlays import to_png
from tfcausal.data.mask_drawing import Box, drawn_mask, scaled
from tfcausal.data.mask_times import median_seconds
from tfcausal.errors import TfCausalError
from tfcausal.figures import outlined
from widgets import address, cached, cached_masks, drawing, export, frame, pictures
from widgets.wording import plain

ABOUT = (
    "Show a model what it should look at: draw around the cause on some images, and train with these masks. A few "
    "quick ones of every class are enough to begin with."
)
KEYS = (
    "Polygon: click its corners, and the first one again to close it. Box and brush: drag. Keys: **P** previous, **N** "
    "next, **U** undo, **S** save. Going to another image saves the mask first; a field that is typed in has the keys."
)
ENERGY = (
    "Mask energy is the share of a model's positive saliency inside the mask. It is measured on images that have a "
    "mask and were not trained on; any other image counts with the mean of its class."
)
SIDES = {"small": 420, "medium": 640, "large": 960}
ORDERS = {"random": "at random", "energy": "lowest mask energy"}
TOOLBAR = 160  # pixels, of the tools that the canvas shows above its right end
MOST = 500
UNDRAWN = "without a mask"
MEANING = {
    "train": "a training image: its mask is learnt from",
    "validation": "a validation image: its mask is not learnt from",
    "test": "a test image: its mask measures, and is not learnt from",
}


def choose_folder() -> tuple[cached_masks.Folder, list[str]] | None:
    """The folder, and the runs that were trained on it."""
    known = cached_masks.runs_by_folder()
    root = cached_masks.given()
    if root is not None:
        return cached_masks.folder_key(root), known.get(root.resolve(), [])
    found = {str(path): path for path in known if path.is_dir()}
    if not found:
        st.info(
            "No folder of images is known: start the explorer on one with `tfcausal mask FOLDER`. Runs that were "
            "trained on a folder of images offer it here, too.",
            icon=":material/folder_off:",
        )
        return None
    root = found[address.select("folder", "Folder", list(found))]
    data = cached.open_run(cached.run_key(known[root][0])).config.data
    return cached_masks.folder_key(root, data.exclude_classes), known[root]


def choose_sample(key: cached_masks.Folder, runs: list[str]) -> tuple[tuple[Sampled, ...], dict[str, str]]:
    """The images to draw on, and the part of the data that every image belongs to, as far as it is known."""
    places = st.columns([3, 2, 5, 2, 2, 2], vertical_alignment="bottom")
    run, model = None, None
    with places[0]:
        if runs:
            chosen = address.optional("run", "Run on these images", runs, nothing="no run", default=runs[0])
            run = None if chosen is None else cached.run_key(chosen)
    parts = known_parts(key, run)
    with places[1]:
        names = [name for name in MEANING if name in set(parts.values())]
        part = address.select("part", "Part", [*names, cached_masks.ALL]) if names else cached_masks.ALL
    with places[2]:
        order = address.segments("order", "Choose images", list(ORDERS), format_func=ORDERS.__getitem__, help=ENERGY)
    with places[3]:
        if order == "energy" and run is not None:
            model = address.select("model", "Model", list(cached.open_run(run).config.models))
    with places[4]:
        most = min(MOST, len(cached_masks.folder(key).images))
        count = address.number("count", "Images", 1, most, min(20, most))
    with places[5]:
        seed = address.number("seed", "Seed", 0, 2**31, 0)
    if run is not None and order == "energy":
        with frame.shown_errors():
            return cached_masks.sample(key, run, part, model, count, seed), parts
    elif order == "energy":
        text = "Mask energy is known from a run on these images, and there is none: these are chosen at random."
        st.info(text, icon=":material/info:")
    return cached_masks.sample(key, run if parts else None, part, None, count, seed), parts


def known_parts(key: cached_masks.Folder, run: cached.Run | None) -> dict[str, str]:
    if run is not None and (Path(run[0]) / run[1] / "maps.zarr").is_dir():
        with frame.shown_errors():
            return cached_masks.parts(key, run)
    return cached_masks.parts(key, None)


def choose_image(desk: drawing.Desk, sample: tuple[Sampled, ...], done: list[bool]) -> int:
    """The image's place in the sample. No widget holds it: what a browser sends late would take it back."""
    names = [image.name for image in sample]
    marks = dict(zip(names, done, strict=True))
    undrawn = next((name for name in names if not marks[name]), names[0])
    shown = address.held("image", "Image", undrawn, marks.__contains__)
    target = desk.target(shown)
    if target != shown and target in marks:
        shown = address.hold("image", target)
    places = st.columns([3, 8, 5, 3], vertical_alignment="bottom")
    with places[1]:
        key = f"masks-image-{shown}-{sum(done)}"  # another widget for other marks: it is known by its texts
        st.selectbox(
            "Image",
            names,
            names.index(shown),
            key=key,
            format_func=lambda name: f"{'✓' if marks[name] else '·'} {name}",
            on_change=pick,
            args=(desk, key, shown),
        )
    with places[2]:
        address.segments("through", "Go through", [UNDRAWN, "all"])
    with places[0]:
        action(desk, "Previous", "previous", "P", ":material/chevron_left:")
    with places[3]:
        action(desk, "Next", "next", "N", ":material/chevron_right:", primary=True)
    return names.index(shown)


def pick(desk: drawing.Desk, key: str, shown: str) -> None:
    chosen = st.session_state[key]
    if chosen != shown:  # after a run that was cut short, Streamlit takes the first value for a change
        desk.go_to(chosen)


def action(desk: drawing.Desk, label: str, name: str, shortcut: str, icon: str, primary: bool = False) -> None:
    st.button(
        label,
        key=f"masks-{name}",
        icon=icon,
        shortcut=shortcut or None,
        width="stretch",
        type="primary" if primary else "secondary",
        on_click=desk.ask,
        args=(name,),
    )


def leave(desk: drawing.Desk, key: cached_masks.Folder, name: str) -> None:
    """Save what was drawn on the image before; where that fails, go back to it."""
    with desk.held:
        now = desk.drawing
        here = now is not None and str(now.folder.root) == key[0]
        if now is None or not now.shapes or (here and now.image == name):
            return
        desk.asked = time.monotonic()
        if not desk.save():
            if here:
                desk.go_to(now.image)
            else:
                now.put(())
        desk.changes += 1
    st.rerun()


def draw(desk: drawing.Desk, key: cached_masks.Folder, image: Sampled, part: str | None) -> np.ndarray | None:
    """The canvas and its tools; the picture with what is drawn."""
    now = desk.drawing
    places = st.columns([30, 29, 21, 22], vertical_alignment="bottom")
    with places[0]:
        side = SIDES[address.segments("side", "Picture", list(SIDES), "medium")]
    with places[1]:
        tool = address.segments("tool", "Tool", list(drawing.TOOLS))
    with places[2]:
        cut = address.segments("adds", "What it does", ["adds", "cuts out"]) == "cuts out"
    with places[3]:
        share = address.slider("brush", "Brush, % of the longer side", 0.5, 25.0, 5.0, 0.5, disabled=tool != "brush")
    left, right = st.columns([3, 1], gap="medium")
    shown = cached_masks.picture(key, image.name, side)
    now.size = shown.size
    height, width = shown.size
    kept = kept_mask(key, image.name, side)
    ground = cached_masks.background(key, image.name, side, kept is not None)
    with left:
        facts = [f"class **{plain(image.class_name)}**", f"{width} × {height} pixels"]
        facts += [MEANING[part]] if part in MEANING else []
        if image.energy is not None:
            of = "its" if image.measured else "mean of its class"
            facts.append(f"mask energy {image.energy:.2f} ({of})")
        facts.append("no mask yet" if kept is None else f"its mask, outlined, has {kept[1]:.1%} of it")
        with st.container(width=max(ground[1] - TOOLBAR, TOOLBAR)):
            st.markdown(f"**{plain(image.name)}** · " + " · ".join(facts))
    brush = share / 100 * max(height, width)
    if tool == "brush":
        with right:
            st.caption(f"Brush: {brush:.3g} pixels of the image")
    address.write()  # before the canvas, whose answers come with the link of that moment
    with left:
        drawing.canvas(now, ground, tool, cut, brush)
        st.caption(KEYS)
    with right:
        with st.container(horizontal=True):
            action(desk, "Undo", "undo", "U", ":material/undo:")
            action(desk, "Clear", "clear", "", ":material/delete:")
        action(desk, "Save", "save", "S", ":material/save:")
        if now.folder.has_mask(image.name):
            now.replace = may_replace(f"masks-replace-{image.name}-{now.saved}")
        with st.popover("Box by numbers", icon=":material/keyboard:"):
            typed_box(desk, cut)
    return preview(now, shown.pixels, right)


def may_replace(key: str) -> bool:
    choice = st.segmented_control("The mask that is there", ["keep", "replace"], default="keep", key=key, required=True)
    return choice == "replace"


def kept_mask(key: cached_masks.Folder, name: str, side: int) -> tuple[np.ndarray, float] | None:
    with frame.shown_errors():
        return cached_masks.kept_mask(key, name, side)
    return None


def typed_box(desk: drawing.Desk, cut: bool) -> None:
    """Edges in pixels, for those who draw without a mouse."""
    now = desk.drawing
    height, width = now.size or (1, 1)
    edges = {"Left": (0, width), "Top": (0, height), "Right": (width, width), "Bottom": (height, height)}
    keys = [f"masks-{name}-{now.image}" for name in edges]
    for (name, (value, most)), key in zip(edges.items(), keys, strict=True):
        st.number_input(f"{name} edge, pixels", 0, most, value, key=key)
    st.button("Draw this box", key="masks-box", on_click=add_box, args=(desk, keys, cut), icon=":material/add_box:")


def add_box(desk: drawing.Desk, keys: list[str], cut: bool) -> None:
    edges = [float(st.session_state[key]) for key in keys]
    with desk.held:
        try:
            desk.drawing.put((*desk.drawing.shapes, Box(*edges, cut)))
            desk.said = None
        except TfCausalError as error:
            desk.said = (False, str(error))
        desk.changes += 1


def preview(now: drawing.Drawing, pixels: np.ndarray, place: st.delta_generator.DeltaGenerator) -> np.ndarray | None:
    if not now.shapes:
        return None
    (height, width), (rows, columns) = pixels.shape[:2], now.size or (1, 1)
    shapes = [scaled(shape, width / columns, height / rows) for shape in now.shapes]
    mask = drawn_mask(shapes, height, width)
    share = f"{mask.mean():.1%} of the image"
    drawn = outlined(pixels * np.where(mask, 1.0, 0.5)[..., None], mask)
    with place:
        pictures.show(drawn, f"The mask drawn on {now.image}, {share}", f"drawn: {share}")
    return drawn


@st.fragment(run_every=1.0)
def clock(since: float) -> None:
    st.markdown(f"This image: **{time.monotonic() - since:.0f} s**")


def show_progress(since: float, done: list[bool], seconds: dict[str, float]) -> None:
    median = median_seconds(seconds)
    places = st.columns(3)
    with places[0]:
        clock(since)
    text = "Time until the mask was saved, over all images of the folder that were drawn on."
    places[1].markdown(f"Median per image: **{'–' if median is None else f'{median:.0f} s'}**", help=text)
    places[2].markdown(f"With a mask: **{sum(done)} of {len(done)}** in the sample")


def act(desk: drawing.Desk, sample: tuple[Sampled, ...], position: int, changes: int) -> None:
    """Do what was asked for, and draw the page again if anything has changed since it was begun."""
    pass_over = address.remembered("through") == UNDRAWN
    desk.wait()
    with desk.held:
        for name in desk.take():
            desk.said = None
            now = desk.drawing
            if name == "undo":
                now.put(now.shapes[:-1])
            elif name == "clear":
                now.put(())
            elif name == "save":
                desk.save()
            elif not now.shapes or desk.save():
                position = step(desk, sample, position, 1 if name == "next" else -1, pass_over)
        changed = desk.changes != changes
    if changed:
        st.rerun()


def step(desk: drawing.Desk, sample: tuple[Sampled, ...], position: int, by: int, pass_over: bool) -> int:
    folder = desk.drawing.folder
    target = next_position([folder.has_mask(image.name) for image in sample], position, by, pass_over)
    if target is None:
        end = "There is no further image" if by > 0 else "There is no image before this one"
        before = desk.said[1] if desk.said else ""
        desk.said = (True, f"{before} {end}{' without a mask' if pass_over else ''} in the sample.".strip())
        return position
    desk.go_to(sample[target].name)
    return target


def table(sample: tuple[Sampled, ...], done: list[bool], seconds: dict[str, float]) -> pd.DataFrame:
    rows = [
        {
            "image": image.name,
            "class": image.class_name,
            "mask": has_mask,
            "seconds": seconds.get(image.name),
            "mask_energy": image.energy,
            "energy_measured": image.measured,
        }
        for image, has_mask in zip(sample, done, strict=True)
    ]
    return pd.DataFrame(rows)


def show() -> None:
    chosen = choose_folder()
    if chosen is None:
        return
    key, runs = chosen
    folder = cached_masks.folder(key)
    where = plain(cached_masks.spelled(folder.root))
    st.caption(f"{len(folder.images):,} images in {where}; masks go to `masks/` beside `images/`.")
    if folder.notes:
        with st.expander(f"{len(folder.notes)} files are left out", icon=":material/warning:"):
            st.code("\n".join(folder.notes[:100]), language=None, wrap_lines=True)
    with frame.shown_errors():
        folder.check_writable()
    sample, parts = choose_sample(key, runs)
    if not sample:
        st.info("There is no image in this part.", icon=":material/info:")
        return
    done = [folder.has_mask(image.name) for image in sample]
    desk = drawing.desk()
    changes = desk.changes
    position = choose_image(desk, sample, done)
    image = sample[position]
    leave(desk, key, image.name)
    now = desk.begin(folder, image.name)
    if desk.said is not None:
        well, text = desk.said
        st.success(plain(text), icon=":material/check:") if well else frame.problem(text)
    seconds = folder.times.seconds()
    show_progress(now.since, done, seconds)
    drawn = None
    with frame.shown_errors():
        drawn = draw(desk, key, image, parts.get(image.name))
    name = f"masks-{image.name.rsplit('/', 1)[-1]}"
    export.bar(name, partial(table, sample, done, seconds), None if drawn is None else partial(to_png, drawn))
    act(desk, sample, position, changes)


with frame.page("Masks", ABOUT):
    show()
