"""YAML as configurations use it: the scalars of YAML 1.2, no key twice, and `key.path=value` settings.

YAML 1.1, which PyYAML reads, takes `1e-3` for text, `on` for a boolean, `1:30` for 90 and `2024-01-01` for a date.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from tfcausal.config_errors import describe, problem
from tfcausal.errors import ConfigError

_BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
_INT = re.compile(r"^[-+]?[0-9]+$")
_FLOAT = re.compile(
    r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)


def read_yaml(text: str, source: str) -> Any:
    """Read one YAML document.

    Args:
        text: The document.
        source: What error messages call it.

    Returns:
        Dictionaries, lists and scalars; None for an empty document.

    Raises:
        ConfigError: If it is not valid YAML, or has a key twice.

    Example:
        >>> read_yaml("{learning_rate: 1e-3, name: 2024-01-01}", "a file")
        {'learning_rate': 0.001, 'name': '2024-01-01'}
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{source}{place}: expected valid YAML; {error.problem or error.context}.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: expected valid YAML; {' '.join(str(error).split())}.") from None
    except (ValueError, KeyError):  # of a tag that its value does not fit, such as `!!int x`
        raise ConfigError(f"{source}: expected valid YAML; a value does not fit its tag. Remove the tag.") from None
    except RecursionError:
        raise ConfigError(f"{source}: expected a configuration; received lists or keys nested without end.") from None


def read_yaml_file(path: str | Path) -> Any:
    """Read a YAML file in UTF-8.

    Args:
        path: The file.

    Returns:
        As :func:`read_yaml`.

    Raises:
        ConfigError: If there is no such file, or it is not valid YAML.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: expected a configuration file; there is none. Check the path.") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: expected a configuration file; received a folder. Name a file in it.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: expected text in UTF-8; byte {error.start} is not. Save it as UTF-8.") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}. Check the path and its permissions.") from None
    return read_yaml(text, str(path))


def write_yaml(value: object) -> str:
    """Write YAML that :func:`read_yaml` reads back, with keys in their order and tuples on one line.

    Example:
        >>> print(write_yaml({"name": "1e-3", "filters": (8, 16)}), end="")
        name: '1e-3'
        filters: [8, 16]
    """
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, default_flow_style=False, allow_unicode=True, width=120)


def override_key(mapping: dict[str, Any], setting: str) -> dict[str, Any]:
    """Replace one value, as `--set` does.

    Args:
        mapping: Nested dictionaries; they are not changed.
        setting: `key.path=value`, with the value in YAML. Sections that are not there yet are made.

    Returns:
        A copy with the value in place.

    Raises:
        ConfigError: If the setting has another form, or its path leads through something that is not a section.

    Example:
        >>> override_key({"training": {"epochs": 25}}, "training.epochs=3")
        {'training': {'epochs': 3}}
    """
    path, separator, text = setting.partition("=")
    keys = path.strip().split(".")
    if not separator or not all(keys):
        expected = "`key.path=value`, such as `training.epochs=3`"
        raise ConfigError(f"--set: {problem(expected, describe(setting))}")
    return _replace(mapping, keys, read_yaml(text, f"--set {setting}"), "")


def _replace(mapping: dict[str, Any], keys: list[str], value: object, above: str) -> dict[str, Any]:
    key, *rest = keys
    if not rest:
        return {**mapping, key: value}
    path, section = f"{above}{key}", mapping.get(key)
    if section is not None and not isinstance(section, dict):
        expected = f"`{path}` to be a section, because `{path}.{'.'.join(rest)}` is below it"
        raise ConfigError(f"--set: {problem(expected, describe(section), f'Set all of it: `--set {path}=...`.')}")
    return {**mapping, key: _replace(section or {}, rest, value, f"{path}.")}


class _Loader(yaml.SafeLoader):
    yaml_constructors = {  # noqa: RUF012
        tag: constructor
        for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
        if tag is None or tag.rsplit(":", 1)[1] in ("null", "bool", "int", "float", "str", "seq", "map")
    }
    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, regexp) for tag, regexp in resolvers if tag.rsplit(":", 1)[1] in ("null", "merge")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key `{key.value}` is there twice; remove one", problem_mark=key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or 1.2 would take for something else."""


_Dumper.add_representer(
    tuple, lambda dumper, value: dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=True)
)
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:bool", _BOOL, list("tTfF"))
    _class.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))
