"""Runs a Settings schema over a part of the tree and says each mistake once, where it is.

Law: one mistake is one line. A near miss of a required key ("netwrok-name") is reported as that and
not as a missing key too; a value that fails as several alternatives fails once.

pydantic finds the mistakes; its places become lines and columns, its words become ours.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from mta.config.walker import IPV6_HINT, Path, Tree, has_bare_ipv6
from mta.plugins.find import nearest
from mta.settings import Settings

S = TypeVar("S", bound=Settings)


def keys_of(schema: type[BaseModel]) -> dict[str, Any]:
    """The keys of a block as they are written, with pydantic's description of each field."""
    return {(field.alias or name): field for name, field in schema.model_fields.items()}


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Every block class inside an annotation: tuple[X, ...] | None -> X."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from models_in(argument)


def as_block(value: Any) -> Any:
    """A block whose keys are all commented out reads as an empty scalar; it is an empty block."""
    return {} if value == "" else value


def validate(
    schema: type[S],
    value: Any,
    path: Path,
    tree: Tree,
    *,
    also_known: Iterable[str] = (),
    chosen_by: str = "",
) -> S | None:
    """An instance of `schema`, or None with the mistakes in `tree`.

    `also_known` are keys of the same block that another schema reads: they are suggested.
    `chosen_by` names the plugin whose schema this is, for messages about a broken one.
    """
    try:
        return schema.model_validate(as_block(value), by_alias=True, by_name=False)
    except ValidationError as error:
        details = error.errors(include_url=False)
    except Exception as error:
        whose = f"the schema of {chosen_by}" if chosen_by else "the schema"
        tree.report(path, f"{whose} failed: {type(error).__name__}: {error}")
        return None
    _report_all(schema, details, path, tree, tuple(also_known))
    return None


def _report_all(
    schema: type[BaseModel],
    details: list[ErrorDetails],
    path: Path,
    tree: Tree,
    also_known: tuple[str, ...],
) -> None:
    places = [_place(detail, path, tree) for detail in details]
    meant: set[Path] = set()
    for detail, place in zip(details, places, strict=True):
        if detail["type"] == "extra_forbidden":
            known = _known_at(schema, place[len(path) : -1])
            if len(place) == len(path) + 1:
                known += also_known
            near = nearest(str(place[-1]), known)
            if near:
                meant.add((*place[:-1], near))
    said: set[Path] = set()
    for detail, place in zip(details, places, strict=True):
        if place in said or (detail["type"] == "missing" and place in meant):
            continue
        if any(other[: len(place)] == place and other != place for other in places):
            continue  # one alternative of several; the others say more
        said.add(place)
        if detail["type"] == "extra_forbidden":
            known = _known_at(schema, place[len(path) : -1])
            if len(place) == len(path) + 1:
                known += also_known
            tree.report(place, unknown_key(str(place[-1]), known), tree.keys.get(place))
        elif detail["type"] == "missing":
            tree.report(place, "missing", tree.mark(place[:-1]))
        else:
            tree.report(place, _words(detail) + _hint(place, tree))


def unknown_key(key: str, known: Iterable[str]) -> str:
    """ "unknown, did you mean X?", or the keys that there are."""
    names = sorted(set(known))
    near = nearest(key, names)
    if near:
        return f"unknown, did you mean {near}?"
    return f"unknown; keys here: {', '.join(names)}" if names else "unknown; no key belongs here"


def _place(detail: ErrorDetails, path: Path, tree: Tree) -> Path:
    """pydantic's location as a path in the tree, without the names of alternatives in it."""
    place = path
    location = detail["loc"]
    for index, part in enumerate(location):
        step = (*place, part)
        is_missing_key = detail["type"] == "missing" and index == len(location) - 1
        if step in tree.values or is_missing_key:
            place = step
    return place


def _known_at(schema: type[BaseModel], location: Path) -> tuple[str, ...]:
    """The keys of the block at `location` inside `schema`."""
    models = {schema}
    for part in location:
        if not isinstance(part, str):
            continue
        inner = {
            found
            for model in models
            for key, field in keys_of(model).items()
            if key == part
            for found in models_in(field.annotation)
        }
        models = inner or models
    return tuple(key for model in models for key in keys_of(model))


def _words(detail: ErrorDetails) -> str:
    """What is wrong, in the words of this house."""
    kind, context = detail["type"], detail.get("ctx", {})
    given = _shown(detail["input"])
    if kind in {"value_error", "assertion_error"}:
        return str(context.get("error", detail["msg"]))
    if kind.startswith("int_") or kind == "int_type":
        return f"{given} is not a whole number"
    if kind.startswith(("float_", "decimal_")) or kind == "float_type":
        return f"{given} is not a number"
    if kind in {"string_type", "string_sub_type"}:
        return f"expected one value, not {given}"
    if kind in {"list_type", "tuple_type", "set_type", "frozen_set_type"}:
        return f"expected a list such as [a, b], not {given}"
    if kind in {"model_type", "model_attributes_type", "dict_type", "mapping_type"}:
        return f"expected a block of keys, not {given}"
    if kind in {"too_short", "string_too_short"}:
        return f"at least {context.get('min_length', 1)} is needed"
    if kind in {"literal_error", "enum"}:
        expected = str(context.get("expected", "")).replace("'", "").replace(" or ", ", ")
        near = nearest(str(detail["input"]), expected.split(", "))
        return f"{given} is none of {expected}" + (f", did you mean {near}?" if near else "")
    if kind == "greater_than_equal":
        return f"{given} is too small: at least {context.get('ge')}"
    if kind == "less_than_equal":
        return f"{given} is too large: at most {context.get('le')}"
    if kind == "string_pattern_mismatch":
        return f"{given} does not have the form {context.get('pattern')}"
    return f"{given}: {detail['msg']}"


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a block of keys"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, enum.Enum):
        value = value.value
    text = str(value)
    return repr(text if len(text) <= 80 else text[:77] + "...") if text else "nothing"


def _hint(place: Path, tree: Tree) -> str:
    """An IPv6 address without quotes in a flow list reads as a block of keys."""
    if place not in tree.values:
        return ""
    value = tree.at(place)
    if isinstance(value, dict) and any(has_bare_ipv6(f"{key}:") for key in value):
        return f" ({IPV6_HINT})"
    return ""
