"""Own images: what a model answers to images from anywhere, where it looks, and what interventions change."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import streamlit as st

from tfcausal.browsing.overlays import Colours, sheet
from tfcausal.browsing.uploads import LeftOut
from tfcausal.errors import InvalidArgument, TfCausalError, message
from tfcausal.figures import outlined
from tfcausal.saliency.registry import available_explainers
from widgets import address, cached, charts, export, frame, handing_over, intervening, pictures
from widgets import cached_own_images as own
from widgets.cached_own_images import Picture, Subject
from widgets.handing_over import ALL
from widgets.wording import plain

ABOUT = (
    "Images of your own, one or a folder's worth: what a model answers, where it looks, and what changes when a part "
    "is masked. They stay in this session: nothing is written to disk, and a reload forgets them."
)
FILE, RUNS = "model file", "runs"
MAPS, INTERVENTIONS = "maps", "interventions"
PER_PAGE = {"12": 12, "24": 24, "48": 48}
PREDICTED = "predicted"
NUMBER = r"[-+]?\d+(?:\.\d*)?"


def choose_subject(models: dict[str, list[str]]) -> tuple[Callable[[], Subject], cached.Run | None] | None:
    """The model that is asked, which is loaded when it is needed, and its run."""
    file = own.model_file()
    sources = [*([FILE] if file else []), *([RUNS] if models else [])]
    if not sources:
        text = (
            "No model is trained yet. The page **Runs** shows how far they are; a model file of its own is shown with "
        )
        st.info(text + "`tfcausal explore MODEL.keras`.", icon=":material/info:")
        return None
    places = st.columns(3, vertical_alignment="bottom")
    if len(sources) > 1:
        with places[0]:
            source = address.segments("from", "Model from", sources)
        places = places[1:]
    else:
        source = sources[0]
    if source == FILE and file is not None:
        subject = choose_file(file, places)
        return (lambda: subject), None
    with places[0]:
        run = address.select("run", "Run", list(models), cached.folder().chosen)
    with places[1]:
        model = address.select("model", "Model", models[run])
    key = cached.run_key(run)
    return partial(own.run_subject, key, model), key


def choose_file(file: Path, places: Sequence[st.delta_generator.DeltaGenerator]) -> Subject:
    model = own.image_model(file)
    st.caption(plain(f"{file.name}. {model.guess}"))
    with places[0]:
        given = address.text(
            "pixels", "Black and white", f"{model.pixels[0]:g} {model.pixels[1]:g}", help="As the model takes them."
        )
    black, white = numbers("pixels", given)
    size = None
    if model.takes_any_size:
        with places[1]:
            sides = address.text("size", "Height and width", "", help="This model takes images of any size: say which.")
        if sides:
            height, width = numbers("size", sides)
            size = int(height), int(width)
    return own.file_subject(file, (black, white), size)


def numbers(name: str, text: str) -> tuple[float, float]:
    found = re.fullmatch(rf"\s*({NUMBER})[\s,x]+({NUMBER})\s*", text[:100])
    if found is None:
        raise InvalidArgument(message(name, "two numbers, such as 0 255", repr(text[:100])))
    return float(found[1]), float(found[2])


def number_of(position: int) -> str:
    """How the link calls an image: its name is not to be in it."""
    return str(position + 1)


def answer(subject: Subject, output: np.ndarray) -> str:
    """The answer in words: the class with the largest output, with its probability or logit."""
    index = int(output.argmax())
    unit = "logit" if subject.model.kind == "linear" else "p"
    return f"{subject.model.class_names[index]}, {unit} = {output[index]:.2f}"


def show_grid(subject: Subject, shown: dict[int, Picture], outputs: dict[int, np.ndarray]) -> None:
    places = st.columns([2, 2, 2, 1, 1], vertical_alignment="bottom")
    with places[0]:
        methods = [entry.name for entry in available_explainers()]
        method = address.select("method", "Method", methods, cached.FIRST_METHODS[0])
    with places[1]:
        opacity = address.slider("opacity", "Overlay strength", 0.0, 1.0, 0.8, 0.05)
    with places[2]:
        colours: Colours = address.segments("colours", "Colours", ["signed", "positive"])
    with places[3]:
        per_page = PER_PAGE[address.select("count", "On a page", list(PER_PAGE))]
    with places[4]:
        help_text = "One scale for all pictures, so that they can be compared."
        shared = address.switch("shared", "Shared scale", help=help_text)
    number = address.pages("page", -(-len(shown) // per_page), (subject.key, len(shown)))
    page = list(shown)[number * per_page : (number + 1) * per_page]
    with frame.shown_errors():
        classes = [int(outputs[position].argmax()) for position in page]
        with st.spinner(f"Computing {method}", show_time=True):
            maps = own.maps(subject, [shown[position] for position in page], method, classes)
        read = np.stack([own.pixels(subject.shape, shown[position]) for position in page])
        overlays, scales = pictures.laid_over(read, maps, opacity, colours, shared)
        pictures.legend(colours, method, scales)
        captions = []
        with st.grid(min_column_width=150):
            for pixels, position in zip(overlays, page, strict=True):
                name, text = shown[position].name, answer(subject, outputs[position])
                with st.container(gap="xxsmall"):
                    pictures.show(pixels, f"{name}: {method} map of {subject.name} for {text}")
                    settings = {
                        "type": "tertiary",
                        "on_click": address.change,
                        "args": ("picture", number_of(position)),
                    }
                    st.button(plain(name.rsplit("/", 1)[-1]), key=f"open-{position}", **settings)
                    st.caption(plain(text))
                captions.append(f"{name.rsplit('/', 1)[-1]}\n{text}")
        make = partial(sheet, overlays, captions, f"{method} of {subject.name}")
        export.bar(f"own-images-{subject.name}", lambda: table(subject, shown, outputs), make)


def table(subject: Subject, shown: dict[int, Picture], outputs: dict[int, np.ndarray]) -> pd.DataFrame:
    names = subject.model.class_names
    best = {position: int(output.argmax()) for position, output in outputs.items()}
    unit = "logit" if subject.model.kind == "linear" else "probability"
    return pd.DataFrame(
        {
            "name": [shown[position].name for position in outputs],
            "predicted": [names[best[position]] for position in outputs],
            unit: [float(output[best[position]]) for position, output in outputs.items()],
        }
    )


def show_one(subject: Subject, shown: Picture, output: np.ndarray) -> None:
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.button(
            "All images", icon=":material/arrow_back:", on_click=address.change, args=("picture", ALL), type="tertiary"
        )
        wanted = address.segments("show", "Show", [MAPS, INTERVENTIONS])
    picture = own.pixels(subject.shape, shown)
    if wanted == INTERVENTIONS:
        intervening.intervene(
            subject.classifier,
            own.inputs(subject, [picture])[0],
            shown.mask(),
            subject.model.class_names,
            subject.key,
            shown.name,
            subject.levels,
        )
        return
    left, right = st.columns([1, 3])
    height, width, _ = subject.shape
    with left:
        text = f"{shown.name}: {answer(subject, output)}"
        pictures.show(outlined(picture, shown.mask()), text, f"as the model sees it, {height} x {width} pixels", 384)
    with right:
        st.markdown(f"**{plain(shown.name)}** · **{plain(answer(subject, output))}**")
        logits = show_logits(subject, shown)
    every, captions = show_maps(subject, shown, picture, output)
    make = (lambda: sheet(every, captions, f"{subject.name}, {shown.name}")) if every else None
    export.bar(f"own-image-{subject.name}", lambda: logits, make)


def show_maps(
    subject: Subject, shown: Picture, picture: np.ndarray, output: np.ndarray
) -> tuple[list[np.ndarray], list[str]]:
    st.subheader("Maps", anchor=False)
    names = subject.model.class_names
    places = st.columns([2, 3, 2, 2], vertical_alignment="bottom")
    with places[0]:
        wanted = address.select("target", "Class to explain", [PREDICTED, *names])
    with places[1]:
        known = [entry.name for entry in available_explainers()]
        methods = address.several("methods", "Methods", known, cached.FIRST_METHODS)
    with places[2]:
        opacity = address.slider("opacity", "Overlay strength", 0.0, 1.0, 0.8, 0.05)
    with places[3]:
        colours: Colours = address.segments("colours", "Colours", ["signed", "positive"])
    index = int(output.argmax()) if wanted == PREDICTED else names.index(wanted)
    st.caption(f"Maps for class **{plain(names[index])}**, each on a scale of its own.")
    pictures.legend(colours)
    every: list[np.ndarray] = []
    captions: list[str] = []
    with st.grid(min_column_width=180):
        for method in methods:
            with st.container(gap="xxsmall"), frame.shown_errors():
                with st.spinner(method, show_time=True):
                    maps = own.maps(subject, [shown], method, [index])
                overlays, scales = pictures.laid_over(picture[None], maps, opacity, colours, shared=False)
                alt = f"{method} map of {subject.name} for class {names[index]}"
                pictures.show(overlays[0], alt if maps.any() else f"{alt}: 0 everywhere")
                end = pictures.ends(method, colours, scales[0]) if maps.any() else "0 everywhere"
                st.caption(f"**{method}** {end}")
                every.append(overlays[0])
                captions.append(f"{method}\n{end}")
    return every, captions


def show_logits(subject: Subject, shown: Picture) -> pd.DataFrame:
    names = subject.model.class_names
    try:
        parts = own.logit_parts(subject, shown)
    except TfCausalError as error:
        frame.problem(error)
        return pd.DataFrame()
    classes = [names[index] for index in parts.classes]
    charts.stacked_logits(classes, parts.pixels, parts.biases, parts.logits, key="logits")
    st.caption("A logit is the sum of what its pixels contribute (the WBP map) and what the layers' biases add.")
    columns = {"logit": parts.logits, "from pixels": parts.pixels, "from biases": parts.biases}
    if subject.model.kind != "linear":
        columns = {"probability": parts.probabilities, **columns}
    return pd.DataFrame({"class": classes, **columns})


def show() -> None:
    chosen = choose_subject(own.trained_models())
    if chosen is None:
        return
    load, key = chosen
    every = handing_over.choose_images(key)
    if not every:
        handing_over.show_left_out(own.left_out())
        text = "Upload images to see what the model answers; a link carries none."
        st.info(text, icon=":material/upload:")
        split = None if key is None else handing_over.sampled_split(key)
        if key is not None and split is not None:
            cached.warm_up(key, split, address.remembered("model"))
        return
    with st.spinner("Reading the images", show_time=True):
        subject = load()
        found = own.answers(subject, every)
    outputs = {position: output for position, output in found.items() if not isinstance(output, str)}
    unread = [LeftOut(every[position].name, text) for position, text in found.items() if isinstance(text, str)]
    handing_over.show_left_out([*own.left_out(), *unread])
    if not outputs:
        return
    shown = {position: every[position] for position in outputs}
    names = {ALL: f"all {len(shown)}"}
    names |= {number_of(position): f"{number_of(position)}: {entry.name}" for position, entry in shown.items()}
    picture = address.select("picture", "Image", list(names), format_func=names.__getitem__)
    if picture == ALL:
        show_grid(subject, shown, outputs)
    else:
        position = int(picture) - 1
        show_one(subject, shown[position], outputs[position])


with frame.page("Own images", ABOUT):
    show()
