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
from tfcausal.errors import InvalidArgument, TfCausalError, message
from tfcausal.figures import outlined
from tfcausal.saliency.registry import available_explainers
from widgets import address, cached, charts, export, frame, handing_over, intervening, pictures
from widgets import cached_own_images as own
from widgets.cached_own_images import Answered, Subject
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
        return None if subject is None else ((lambda: subject), None)
    with places[0]:
        run = address.select("run", "Run", list(models), cached.folder().chosen)
    with places[1]:
        model = address.select("model", "Model", models[run])
    key = cached.run_key(run)
    return partial(own.run_subject, key, model), key


def choose_file(file: Path, places: Sequence[st.delta_generator.DeltaGenerator]) -> Subject | None:
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
            sides = address.text("size", "Height and width", "", help="This model takes images of any size.")
        if not sides.strip():
            text = (
                "This model takes images of any size: give the height and width that it is used with, such as 224 224."
            )
            st.info(text, icon=":material/straighten:")
            return None
        height, width = numbers("size", sides)
        size = int(height), int(width)
    return own.file_subject(file, (black, white), size)


def numbers(name: str, text: str) -> tuple[float, float]:
    found = re.fullmatch(rf"\s*({NUMBER})[\s,x]+({NUMBER})\s*", text[:100])
    if found is None:
        raise InvalidArgument(message(name, "two numbers, such as 0 255", repr(text[:100])))
    return float(found[1]), float(found[2])


def in_words(subject: Subject, shown: Answered) -> str:
    """The answer, and the class with the largest output with its probability or logit."""
    unit = "logit" if subject.model.kind == "linear" else "p"
    best, answer = subject.model.class_names[shown.best], answer_of(subject, shown)
    text = f"{unit} = {shown.output[shown.best]:.2f}"
    return f"{best}, {text}" if answer == best else f"{answer}; {best}: {text}"


def answer_of(subject: Subject, shown: Answered) -> str:
    """The class with the largest output; `none` where no sigmoid says more than one half."""
    from tfcausal.browsing.interventions import answers

    has_answer = shown.best in answers(shown.output, subject.model.kind)
    return subject.model.class_names[shown.best] if has_answer else "none"


def short(shown: Answered) -> str:
    return shown.picture.name.rsplit("/", 1)[-1]


def show_grid(subject: Subject, answered: list[Answered]) -> None:
    places = st.columns([2, 2, 2, 1, 2], vertical_alignment="bottom")
    with places[0]:
        methods = [entry.name for entry in available_explainers()]
        method = address.select("method", "Method", methods, cached.FIRST_METHODS[0])
    with places[1]:
        opacity = address.slider("opacity", "Overlay strength", 0.0, 1.0, 0.8, 0.05)
    with places[2]:
        colours: Colours = address.segments("colours", "Colours", ["signed", "positive"])
    with places[3]:
        per_page = PER_PAGE[address.select("per_page", "On a page", list(PER_PAGE))]
    with places[4]:
        help_text = "One scale for all pictures, so that they can be compared."
        shared = address.switch("shared", "Shared scale", help=help_text)
    st.markdown(f"**{len(answered)}** {'image' if len(answered) == 1 else 'images'}")
    number = address.pages("page", -(-len(answered) // per_page), (subject.key, len(answered)))
    page = answered[number * per_page : (number + 1) * per_page]
    with frame.shown_errors():
        with st.spinner(f"Computing {method}", show_time=True):
            maps = own.maps(subject, [shown.picture for shown in page], method, [shown.best for shown in page])
        read = np.stack([own.pixels(subject.shape, shown.picture) for shown in page])
        overlays, scales = pictures.laid_over(read, maps, opacity, colours, shared)
        pictures.legend(colours, method, scales)
        with st.grid(min_column_width=150):
            for pixels, shown in zip(overlays, page, strict=True):
                text = in_words(subject, shown)
                with st.container(gap="xxsmall"):
                    pictures.show(pixels, f"{shown.picture.name}: {method} map of {subject.name} for {text}")
                    opens(plain(short(shown)), shown, key=f"open-{shown.picture.place}", type="tertiary")
                    st.caption(plain(text))
        captions = [f"{short(shown)}\n{in_words(subject, shown)}" for shown in page]
        make = partial(sheet, overlays, captions, f"{method} of {subject.name}")
        export.bar(f"own-images-{subject.name}", lambda: table(subject, answered), make)


def opens(label: str, shown: Answered | None, **settings: object) -> None:
    """A button that opens an image; all of them if None."""
    place = ALL if shown is None else shown.picture.place
    st.button(label, on_click=address.change, args=("picture", place), **settings)


def table(subject: Subject, answered: list[Answered]) -> pd.DataFrame:
    unit = "logit" if subject.model.kind == "linear" else "probability"
    return pd.DataFrame(
        {
            "name": [shown.picture.name for shown in answered],
            "predicted": [answer_of(subject, shown) for shown in answered],
            "class": [subject.model.class_names[shown.best] for shown in answered],
            unit: [float(shown.output[shown.best]) for shown in answered],
        }
    )


def show_one(subject: Subject, answered: list[Answered], position: int) -> None:
    shown, last = answered[position], len(answered) - 1
    with st.container(horizontal=True, vertical_alignment="bottom"):
        opens("All images", None, icon=":material/grid_view:")
        before, after = answered[max(position - 1, 0)], answered[min(position + 1, last)]
        opens("Previous", before, icon=":material/chevron_left:", disabled=position == 0)
        opens("Next", after, icon=":material/chevron_right:", disabled=position == last)
        wanted = address.segments("show", "Show", [MAPS, INTERVENTIONS])
    st.markdown(f"**{plain(shown.picture.name)}** · **{plain(in_words(subject, shown))}**")
    picture, mask = own.pixels(subject.shape, shown.picture), shown.picture.mask()
    if wanted == INTERVENTIONS:
        image = own.inputs(subject, [picture])[0]
        names, title = subject.model.class_names, shown.picture.name
        intervening.intervene(subject.classifier, image, mask, names, subject.key, title, subject.levels)
        return
    left, right = st.columns([1, 3])
    height, width, _ = subject.shape
    with left:
        text = f"{shown.picture.name}: {in_words(subject, shown)}"
        pictures.show(outlined(picture, mask), text, f"as the model sees it, {height} × {width} pixels", 384)
    with right:
        logits = show_logits(subject, shown)
    every, captions = show_maps(subject, shown, picture)
    make = (lambda: sheet(every, captions, f"{subject.name}, {shown.picture.name}")) if every else None
    export.bar(f"own-image-{subject.name}", lambda: logits, make)


def show_maps(subject: Subject, shown: Answered, picture: np.ndarray) -> tuple[list[np.ndarray], list[str]]:
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
    index = shown.best if wanted == PREDICTED else names.index(wanted)
    st.caption(f"Maps for class **{plain(names[index])}**, each on a scale of its own.")
    pictures.legend(colours)
    every: list[np.ndarray] = []
    captions: list[str] = []
    with st.grid(min_column_width=180):
        for method in methods:
            with st.container(gap="xxsmall"), frame.shown_errors():
                with st.spinner(method, show_time=True):
                    maps = own.maps(subject, [shown.picture], method, [index])
                overlays, scales = pictures.laid_over(picture[None], maps, opacity, colours, shared=False)
                alt = f"{method} map of {subject.name} for class {names[index]}"
                pictures.show(overlays[0], alt if maps.any() else f"{alt}: 0 everywhere")
                end = pictures.ends(method, colours, scales[0]) if maps.any() else "0 everywhere"
                st.caption(f"**{method}** {end}")
                every.append(overlays[0])
                captions.append(f"{method}\n{end}")
    return every, captions


def show_logits(subject: Subject, shown: Answered) -> pd.DataFrame:
    names = subject.model.class_names
    try:
        parts = own.logit_parts(subject, shown.picture)
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
        answered, unread = own.answers(subject, every)
    handing_over.show_left_out([*own.left_out(), *unread])
    if not answered:
        return
    places = [shown.picture.place for shown in answered]
    place = address.held("picture", "Image", ALL, [ALL, *places].__contains__)
    if place == ALL:
        show_grid(subject, answered)
    else:
        show_one(subject, answered, places.index(place))


with frame.page("Own images", ABOUT):
    show()
