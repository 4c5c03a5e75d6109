"""The JSON Schema of study files, with which editors check and complete them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from pydantic.fields import FieldInfo

from fmnist_search.config.pruners import Pruner
from fmnist_search.config.samplers import Sampler
from fmnist_search.config.sections import Section, section_of
from fmnist_search.config.space import NOT_SEARCHABLE, shared_hyperparameters
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.recipe import plugins
from fmnist_search.recipe.families import FAMILIES
from fmnist_search.recipe.groups import Data
from fmnist_search.recipe.hyperparameters import Hyperparameter, hyperparameters
from fmnist_search.results.objectives import ACCURACY, COST_LABELS
from fmnist_search.workspace import NAME_PATTERN

Schema = dict[str, Any]

JSON_TYPES: dict[type, str] = {bool: "boolean", int: "integer", float: "number", str: "string"}
VARIANTS = {
    "sampler": get_args(get_args(Sampler)[0]),
    "pruner": get_args(get_args(Pruner)[0]),
}
"""Tables that have several forms; `name` says which."""


def study_schema() -> Schema:
    """Return the JSON Schema (draft 2020-12) of study files."""
    properties: Schema = {}
    for name, field in StudyConfig.model_fields.items():
        properties[name] = _property_schema(name, field)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "fmnist-search study",
        "type": "object",
        "additionalProperties": False,
        "required": ["name", "budget", "space"],
        "properties": properties,
        "if": {"not": {"required": ["plugins"]}},
        "then": {"properties": _without_plugins()},
    }


def _without_plugins() -> Schema:
    """Return the schema of what a file may not name unless its `plugins` register it."""
    families = {"enum": list(FAMILIES)}
    return {
        "space": {
            "propertyNames": {"enum": ["common", *FAMILIES]},
            "properties": {
                "common": {"properties": {"family": {"anyOf": [families, {"type": "array", "items": families}]}}}
            },
        },
        "objective": {"properties": {"metrics": {"items": {"enum": [ACCURACY, *COST_LABELS]}}}},
    }


def _property_schema(name: str, field: FieldInfo) -> Schema:
    if name == "data":
        schema = _object_schema(_scalars_schema(hyperparameters(Data)))
        dataset = schema["properties"]["dataset"]
        dataset["anyOf"] = [{"enum": dataset.pop("enum")}, {"type": "string", "pattern": NAME_PATTERN}]  # a user's own
        return schema
    if name == "space":
        return _space_schema()
    if name in VARIANTS:
        names = [variant_name(variant) for variant in VARIANTS[name]]
        chosen = type(field.default)
        return {
            "oneOf": [{"enum": names}, *(_variant_schema(section, section is chosen) for section in VARIANTS[name])]
        }
    if section := section_of(field.annotation):
        schema = section.model_json_schema()
        definitions = schema.pop("$defs", {})
        schema.pop("title")
        inlined: Schema = _inline(schema, definitions)
        return inlined
    schema = StudyConfig.model_json_schema(mode="validation")["properties"][name]
    return {key: value for key, value in schema.items() if key != "title"}


def _inline(schema: Any, definitions: Mapping[str, Schema]) -> Any:
    """Return a schema with the definitions of inner tables in place of references to them."""
    if isinstance(schema, list):
        return [_inline(part, definitions) for part in schema]
    if not isinstance(schema, dict):
        return schema
    name = schema.get("$ref", "").rpartition("/")[2]
    referred = {key: value for key, value in definitions.get(name, {}).items() if key != "title"}
    own = {key: value for key, value in schema.items() if key != "$ref"}
    return {key: _inline(value, definitions) for key, value in {**referred, **own}.items()}


def variant_name(section: type[Section]) -> str:
    """Return the name of a sampler or pruner."""
    return str(section.model_fields["name"].default)


def _variant_schema(section: type[Section], is_default: bool) -> Schema:
    schema = section.model_json_schema()
    schema.pop("title")
    return schema if is_default else {**schema, "required": ["name"]}


def _space_schema() -> Schema:
    families = list(FAMILIES)
    shared = {name: spec for name, spec in shared_hyperparameters().items() if name not in NOT_SEARCHABLE}
    one_of = {"anyOf": [{"enum": families}, {"type": "string", "pattern": plugins.NAME_PATTERN}]}
    common = {"family": {"anyOf": [one_of, {"type": "array", "items": one_of}]}, **_domains_schema(shared)}
    own = {name: _object_schema(_domains_schema(hyperparameters(FAMILIES[name]))) for name in families}
    of_plugins = {plugins.NAME_PATTERN: {"type": "object"}}
    return {**_object_schema({"common": _object_schema(common), **own}), "patternProperties": of_plugins}


def _domains_schema(specs: Mapping[str, Hyperparameter]) -> Schema:
    """Return the schemas of domains by dotted name, nested like the tables that TOML reads from dotted names."""
    tables: Schema = {}
    for name, spec in specs.items():
        group, dot, last = name.rpartition(".")
        if dot:
            tables.setdefault(group, _object_schema({}))["properties"][last] = _domain_schema(spec)
        else:
            tables[name] = _domain_schema(spec)
    return tables


def _domain_schema(spec: Hyperparameter) -> Schema:
    one = _scalar_schema(spec)
    meaning = {"description": one.pop("description")}
    forms = [one, {"type": "array", "items": one, "minItems": 1, "uniqueItems": True}]
    if spec.kind in (int, float) and spec.choices is None:
        step = {"type": JSON_TYPES[spec.kind], "exclusiveMinimum": 0}
        bounds = _object_schema({"low": one, "high": one, "log": {"type": "boolean"}, "step": step})
        forms.append({**bounds, "required": ["low", "high"]})
    return {**meaning, "anyOf": forms}


def _scalars_schema(specs: Mapping[str, Hyperparameter]) -> Schema:
    return {name: _scalar_schema(spec) | {"default": spec.default} for name, spec in specs.items()}


def _scalar_schema(spec: Hyperparameter) -> Schema:
    if spec.choices is not None:
        return {"enum": list(dict.fromkeys([*spec.choices, spec.default])), "description": spec.description}
    limits = {"minimum": spec.low, "exclusiveMinimum": spec.above, "maximum": spec.high}
    given = {key: value for key, value in limits.items() if value is not None}
    kind = "number" if spec.share_of else JSON_TYPES[spec.kind]
    one: Schema = {"type": kind, **given}
    if given and not _default_is_within_limits(spec):
        # The default is allowed even if it is outside the limits, such as 0 for "all".
        one = {"anyOf": [one, {"const": spec.default}]}
    return {**one, "description": spec.description}


def _default_is_within_limits(spec: Hyperparameter) -> bool:
    default = spec.default
    if isinstance(default, str):
        return True
    return not (
        (spec.low is not None and default < spec.low)
        or (spec.above is not None and default <= spec.above)
        or (spec.high is not None and default > spec.high)
    )


def _object_schema(properties: Schema) -> Schema:
    return {"type": "object", "additionalProperties": False, "properties": properties}
