"""Say in the user's terms what is wrong with a configuration: one line per problem, naming the key path."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

LONGEST_VALUE = 60


@dataclass(frozen=True)
class Expects:
    """Metadata of a field: what it takes, where that does not follow from its type and bounds."""

    text: str


class Conflict(ValueError):
    """Keys of one section that do not go together; raised by the validators of the sections.

    Args:
        problems: Pairs of a key path below the section and the rest of the sentence about it.
    """

    def __init__(self, problems: Iterable[tuple[str, str]]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(f"{key}: {text}" for key, text in self.problems))


def raise_conflicts(problems: list[tuple[str, str]]) -> None:
    """Raise a `Conflict` if there are any problems: pairs of a key path below the section and a sentence."""
    if problems:
        raise Conflict(problems)


def problem(expected: str, received: str, remedy: str = "") -> str:
    """Put the parts of a problem into one sentence, to be written behind the key path and a colon.

    Args:
        expected: What would have been right, without a full stop.
        received: What was there.
        remedy: What the user can do, as a sentence; may be empty.

    Returns:
        The sentence.

    Example:
        >>> problem("an integer of at least 1", "0")
        'expected an integer of at least 1; received 0.'
    """
    return f"expected {expected}; received {received}. {remedy}".rstrip()


def explain(error: ValidationError, model: type[BaseModel], mapping: Mapping[Any, Any]) -> list[str]:
    """Translate what pydantic found.

    Args:
        error: The error of validating `mapping`.
        model: The class that it was validated as.
        mapping: The configuration as it was read.

    Returns:
        One line per problem: the key path, what was expected, what was received, and what to do.
    """
    lines: list[str] = []
    for details in error.errors(include_url=False):
        location = details["loc"]
        if location[-1:] == ("[key]",) and (key_type := _key_type(model, location[:-2])) is not None:
            lines.append(_key_line(_locate(model, location[:-2]).path, key_type, location[-2]))
            continue
        place = _locate(model, location)
        conflict = (details.get("ctx") or {}).get("error")
        if isinstance(conflict, Conflict):
            lines += [f"{_below(place.path, key)}: {text}" for key, text in conflict.problems]
        else:
            lines.append(_line(details["type"], place, mapping))
    return list(dict.fromkeys(lines))


def closest(word: object, valid: Iterable[object], kind: str) -> str:
    """Help with a word that is not known.

    Args:
        word: What was received.
        valid: What is known.
        kind: What the words are, in the plural: `keys`, `models`.

    Returns:
        The closest known word as a question, or all known words if none is close.

    Example:
        >>> closest("epocs", ["epochs", "batch_size"], "keys")
        'Did you mean `epochs`?'
        >>> closest("colour", ["epochs", "batch_size"], "keys")
        'Valid keys: epochs, batch_size.'
    """
    words = [str(item) for item in valid]
    return _did_you_mean(word, words) or f"Valid {kind}: {', '.join(words)}."


def describe(value: object) -> str:
    """Write a received value on one short line.

    Example:
        >>> describe("3"), describe(3), describe(True), describe({"a": 1})
        ('"3" (text)', '3', 'true', 'a section (keys: a)')
    """
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"{_shorten(json.dumps(value, ensure_ascii=False))} (text)"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value} (not finite)"
    if isinstance(value, Mapping):
        return f"a section (keys: {_shorten(', '.join(map(str, value)))})" if value else "an empty section"
    return _shorten(repr(value).replace("\n", " "))


@dataclass(frozen=True)
class _Place:
    """Where in the configuration an error is: its key path, the type there, and the section that it is in."""

    path: str
    keys: tuple[object, ...]
    annotation: Any
    metadata: tuple[Any, ...] = ()
    section: type[BaseModel] | None = None


def _locate(model: type[BaseModel], location: tuple[int | str, ...]) -> _Place:
    """Follow pydantic's location through the types, leaving out what is not a key of the file: the tags of unions."""
    place = _Place("", (), model)
    for item in location:
        annotation, metadata = _bare(place.annotation, place.metadata)
        if any(isinstance(entry, Expects) for entry in metadata) and not _is_section(annotation):
            break  # The field is described as a whole, not entry by entry.
        path, keys = _below(place.path, item), (*place.keys, item)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            field = annotation.model_fields.get(str(item))
            kind, bounds = (field.annotation, tuple(field.metadata)) if field else (None, ())
            place = _Place(path, keys, kind, bounds, annotation)
        elif members := _members(annotation):
            place = _Place(place.path, place.keys, members[str(item)])
        elif get_origin(annotation) is dict:
            place = _Place(path, keys, get_args(annotation)[1])
        elif get_origin(annotation) is tuple:
            place = _Place(f"{place.path}[{item}]", keys, get_args(annotation)[0])
    return place


def _line(kind: str, place: _Place, mapping: Mapping[Any, Any]) -> str:
    """One problem, for every kind of error that is not a conflict of keys."""
    path, value = place.path, _value_at(mapping, place.keys)
    if kind in ("extra_forbidden", "invalid_key") and place.section is not None:
        return f"{path}: unknown key. {closest(place.keys[-1], place.section.model_fields, 'keys')}"
    annotation, _ = _bare(place.annotation)
    members = _members(annotation)
    if members and isinstance(value, Mapping) and kind.startswith("union_tag"):
        key = _discriminator(members)
        path, missing, value = _below(path, key), key not in value, value.get(key)
        annotation = Literal[tuple(members)]
        expected = expectation(annotation)
    else:
        # An entry that a pair lacks is "missing" as well, but then there is a value: the pair.
        missing = kind == "missing" and value is None
        expected = expectation(place.annotation, place.metadata)
    if missing:
        return f"{path}: missing; expected {expected}."
    return f"{path}: {problem(expected, describe(value), _remedy(annotation, value))}"


def _key_type(model: type[BaseModel], location: tuple[int | str, ...]) -> Any:
    """The type of the keys of a section whose keys are free; None for other places."""
    annotation, _ = _bare(_locate(model, location).annotation)
    return get_args(annotation)[0] if get_origin(annotation) is dict else None


def _key_line(path: str, key_type: Any, key: int | str) -> str:
    """A key that may not be used in a section whose keys are free."""
    text = problem(expectation(key_type), describe(key), _remedy(_bare(key_type)[0], key))
    return f"{_below(path, key)}: {text}"


def expectation(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """Say what a field takes, from its type and bounds.

    Args:
        annotation: The type of the field.
        metadata: Its bounds (`annotated_types`), or an `Expects`.

    Returns:
        A noun phrase.

    Example:
        >>> expectation(Annotated[float, Gt(0), Lt(1)])
        'a number greater than 0 and less than 1'
        >>> expectation(Literal["adam", "sgd"])
        'one of `adam`, `sgd`'
    """
    bare, entries = _bare(annotation, tuple(metadata))
    nullable = NoneType in get_args(annotation) and get_origin(annotation) in (Union, UnionType)
    given = [entry.text for entry in entries if isinstance(entry, Expects)]
    if given:
        text = given[0]
    elif get_origin(bare) is Literal:
        words = [f"`{value}`" for value in get_args(bare)]
        text = words[0] if len(words) == 1 else f"one of {', '.join(words)}"
    elif get_origin(bare) is tuple:
        amount = "at least one entry, each " if any(isinstance(entry, MinLen) for entry in entries) else ""
        text = f"a list of {amount or 'entries, each '}{expectation(get_args(bare)[0])}"
    elif _is_section(bare):
        text = "a section with keys below it"
    else:
        nouns = {bool: "true or false", int: "an integer", float: "a number", str: "text"}
        text = nouns[bare] + _bounds(entries)
    return f"{text}, or null" if nullable else text


def _bounds(metadata: Iterable[Any]) -> str:
    words = []
    for entry in metadata:
        if isinstance(entry, Gt):
            words.append(f"greater than {entry.gt}")
        elif isinstance(entry, Ge):
            words.append(f"of at least {entry.ge}")
        elif isinstance(entry, Lt):
            words.append(f"less than {entry.lt}")
        elif isinstance(entry, Le):
            words.append(f"at most {entry.le}")
        elif isinstance(entry, MinLen):
            words.append("that is not empty")
    return f" {' and '.join(words)}" if words else ""


def _bare(annotation: Any, metadata: tuple[Any, ...] = ()) -> tuple[Any, tuple[Any, ...]]:
    """Strip `Annotated` and `| None`, collecting the metadata on the way."""
    while True:
        if get_origin(annotation) is Annotated:
            annotation, *more = get_args(annotation)
            for entry in more:
                metadata += tuple(entry.metadata) if isinstance(entry, FieldInfo) else (entry,)
        elif get_origin(annotation) in (Union, UnionType) and NoneType in get_args(annotation):
            annotation = Union[tuple(arg for arg in get_args(annotation) if arg is not NoneType)]  # noqa: UP007
        else:
            return annotation, metadata


def _members(annotation: Any) -> dict[str, type[BaseModel]]:
    """The members of a discriminated union by the value of their discriminator; empty for other types."""
    if get_origin(annotation) not in (Union, UnionType):
        return {}
    members = get_args(annotation)
    if not all(isinstance(member, type) and issubclass(member, BaseModel) for member in members):
        return {}
    key = next(iter(members[0].model_fields))
    return {get_args(member.model_fields[key].annotation)[0]: member for member in members}


def _discriminator(members: Mapping[str, type[BaseModel]]) -> str:
    """The key that tells the members of a union apart: their first one."""
    return next(iter(next(iter(members.values())).model_fields))


def _is_section(annotation: Any) -> bool:
    is_model = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return is_model or get_origin(annotation) is dict or bool(_members(annotation))


def _remedy(annotation: Any, value: object) -> str:
    """What to do about a value of a wrong type, or one that is not among the possible ones; often there is nothing."""
    choices = get_args(annotation) if get_origin(annotation) is Literal else ()
    if annotation is str and isinstance(value, int | float):
        return "Put it in quotes."
    if isinstance(value, str) and (annotation in (int, float) or int in map(type, choices)):
        return "Remove the quotes." if _is_number(value) else ""
    return _did_you_mean(value, choices) if isinstance(value, str) else ""


def _did_you_mean(word: object, words: Sequence[str]) -> str:
    close = difflib.get_close_matches(str(word), words, n=1)
    return f"Did you mean `{close[0]}`?" if close else ""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _below(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def _value_at(mapping: Any, keys: tuple[object, ...]) -> Any:
    for key in keys:
        inside = (isinstance(mapping, Mapping) and key in mapping) or isinstance(mapping, list | tuple)
        mapping = mapping[key] if inside else None
    return mapping


def _shorten(text: str) -> str:
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."
