"""What is generated from the code: a JSON Schema and a page of what study files may say, a page of the presets."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, get_args

from pydantic.fields import FieldInfo

from fmnist_search.config.sections import Pruner, Sampler, Section
from fmnist_search.config.space import NOT_SEARCHABLE, shared_hyperparameters
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.models.presets import PRESETS
from fmnist_search.recipe.datasets import DEFAULT_DATASET, get_dataset
from fmnist_search.recipe.families import FAMILIES
from fmnist_search.recipe.formatting import format_value
from fmnist_search.recipe.groups import Data
from fmnist_search.recipe.hyperparameters import Hyperparameter, hyperparameters
from fmnist_search.text import markdown_table

if TYPE_CHECKING:
    from fmnist_search.reporting.model_summary import ModelSummary

Schema = dict[str, Any]

JSON_TYPES: dict[type, str] = {bool: "boolean", int: "integer", float: "number", str: "string"}
VARIANTS = {
    "sampler": get_args(get_args(Sampler)[0]),
    "pruner": get_args(get_args(Pruner)[0]),
}
"""Sections of which a study chooses one by its name."""


# -------------------------------------------------------------------------------------------- schema


def study_schema() -> Schema:
    """The JSON Schema (draft 2020-12) of study files."""
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
    }


def _property_schema(name: str, field: FieldInfo) -> Schema:
    if name == "data":
        return _object_schema(_scalars_schema(hyperparameters(Data)))
    if name == "space":
        return _space_schema()
    if name in VARIANTS:
        names = [_variant_name(variant) for variant in VARIANTS[name]]
        chosen = type(field.default)
        return {
            "oneOf": [{"enum": names}, *(_variant_schema(section, section is chosen) for section in VARIANTS[name])]
        }
    annotation = field.annotation
    if isinstance(annotation, type) and issubclass(annotation, Section):
        schema = annotation.model_json_schema()
        return {key: value for key, value in schema.items() if key not in ("title", "$defs")}
    one: Schema = StudyConfig.model_json_schema(mode="validation")["properties"][name] if name != "space" else {}
    return {key: value for key, value in one.items() if key != "title"}


def _variant_schema(section: type[Section], is_default: bool) -> Schema:
    schema = section.model_json_schema()
    schema.pop("title")
    return schema if is_default else {**schema, "required": ["name"]}


def _space_schema() -> Schema:
    families = list(FAMILIES)
    shared = {name: spec for name, spec in shared_hyperparameters().items() if name not in NOT_SEARCHABLE}
    one_of = {"enum": families}
    common = {"family": {"anyOf": [one_of, {"type": "array", "items": one_of}]}, **_domains_schema(shared)}
    own = {name: _object_schema(_domains_schema(hyperparameters(FAMILIES[name]))) for name in families}
    return _object_schema({"common": _object_schema(common), **own})


def _domains_schema(specs: Mapping[str, Hyperparameter]) -> Schema:
    """Domains by dotted name, as the nested tables that TOML makes of it."""
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
        # A default beside the limits (0 for "all of them") is allowed too.
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


# -------------------------------------------------------------------------------------------- the page


def study_keys_page() -> str:
    """Every key of a study file with its default and meaning, as a Markdown page."""
    parts = [
        "# Every key of a study file",
        "Generated by `make docs` from the code that reads study files. [studies.md](studies.md) teaches writing one; "
        "`fmnist-search studies check FILE` checks one; editors check and complete them by "
        "[studies/schema.json](../studies/schema.json).",
        "## The study\n\n" + _fields_table(StudyConfig, {"name", "question", "builds_on", "experiment", "seed"}),
        "## [data]\n\n" + _hyperparameters_table(hyperparameters(Data)),
    ]
    for name, field in StudyConfig.model_fields.items():
        annotation = field.annotation
        if name in VARIANTS:
            chosen = _variant_name(type(field.default))
            parts.append(f'## [{name}]\n\nBy default `{chosen}`. A bare name does too: `{name} = "{chosen}"`.')
            parts += [
                f'### {name} = "{_variant_name(section)}"\n\n{_docstring(section)}\n\n{_fields_table(section)}'.rstrip()
                for section in VARIANTS[name]
            ]
        elif isinstance(annotation, type) and issubclass(annotation, Section):
            parts.append(f"## [{name}]\n\n{_docstring(annotation)}\n\n{_fields_table(annotation)}")
    shared = {name: spec for name, spec in shared_hyperparameters().items() if name not in NOT_SEARCHABLE}
    parts.append(
        "## [space.common]\n\nWhat recipes of every family have. A list chooses, a table "
        "`{ low = .., high = .., log = true }` (or `step = ..`) ranges, a scalar pins; what is not named keeps its "
        f"default. `family` lists the families: {', '.join(f'`{name}`' for name in FAMILIES)}.\n\n"
        + _hyperparameters_table(shared)
    )
    parts += [
        f"## [space.{name}]\n\n{_hyperparameters_table(hyperparameters(family))}" for name, family in FAMILIES.items()
    ]
    return "\n\n".join(parts) + "\n"


def _docstring(section: type[Section]) -> str:
    lines = (section.__doc__ or "").strip().splitlines()
    return "\n".join(line.strip() for line in lines)


def _fields_table(section: type[Section], only: set[str] | None = None) -> str:
    rows = [
        [f"`{name}`", _format_default(field), _field_description(section, name, field)]
        for name, field in section.model_fields.items()
        if (only is None or name in only) and not (name == "name" and section is not StudyConfig)
    ]
    return markdown_table([["key", "default", "meaning"], *rows]) if rows else ""


def _field_description(section: type[Section], name: str, field: FieldInfo) -> str:
    schema = section.model_json_schema()["properties"].get(name, {}) if section is not StudyConfig else {}
    choices = f"; one of {', '.join(map(str, schema['enum']))}" if "enum" in schema else ""
    return (field.description or name.replace("_", " ")) + choices


def _format_default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default is None or field.default in ("", ()):
        return "none"
    return f"`{format_value(field.default)}`"


def _hyperparameters_table(specs: Mapping[str, Hyperparameter]) -> str:
    rows = [[f"`{name}`", f"`{format_value(s.default)}`", s.description, s.expected()] for name, s in specs.items()]
    return markdown_table([["key", "default", "meaning", "values"], *rows])


def _variant_name(section: type[Section]) -> str:
    return str(section.model_fields["name"].default)


# ----------------------------------------------------------------------------------------- the presets


def _other_datasets_note() -> str:
    """Which presets their authors trained on another dataset."""
    others = [preset for preset in PRESETS.values() if preset.recipe.data.dataset != DEFAULT_DATASET]
    named = ", ".join(f"`{preset.name}` ({get_dataset(preset.recipe.data.dataset).title})" for preset in others)
    remedy = f"`--set data.dataset={DEFAULT_DATASET}` trains them on {get_dataset(DEFAULT_DATASET).title}"
    return f"Trained on another dataset, as their recipes say: {named}; {remedy}."


def presets_page(summaries: Mapping[str, ModelSummary]) -> str:
    """Every preset and every family as a Markdown page; `summaries` are the presets' summaries by name."""
    rows = [
        [
            f"[`{name}`](../studies/recipes/{name}.toml)",
            f"`{preset.recipe.model.family}`",
            f"{summaries[name].parameters:,}",
            f"{summaries[name].mult_adds:,}",
            preset.published_accuracy,
            preset.notes,
        ]
        for name, preset in PRESETS.items()
    ]
    families = [
        [f"[`{name}`](study-keys.md#space{name})", (sys.modules[family.__module__].__doc__ or "").splitlines()[0]]
        for name, family in FAMILIES.items()
    ]
    parts = [
        "# Networks",
        "Generated by `make docs` from the code. A family is a kind of network with hyperparameters that a study can "
        "search; a preset is one network of a family, as somebody has published it, with its author's training.",
        "```console\n"
        "$ fmnist-search models                                      # this page's table\n"
        "$ fmnist-search models show lenet                           # its layers, their shapes and parameters\n"
        "$ fmnist-search models show lenet --set model.width_1=64    # the same network, changed\n"
        "$ fmnist-search models show lenet --recipe > lenet.toml     # its recipe, to train\n"
        "```",
        "## Presets\n\n"
        "Parameters are counted, and where an author gives a count, it is this one. Multiply-adds are those of one "
        "image. Accuracies are the authors' own, in percent of the 10,000 test images of Fashion-MNIST unless said "
        "otherwise; the authors had no validation images but where it is said, while every recipe here holds some "
        "back. What an author does not say is assumed: Adam at a rate of 1e-3, batches of 128, 10 epochs. "
        f"{_other_datasets_note()}\n\n"
        "What they reach when they are trained here stands in [reference-results.md](reference-results.md).\n\n"
        + markdown_table([["preset", "family", "parameters", "multiply-adds", "published", "notes"], *rows]),
        "## Families\n\n"
        "`[space.common] family` names the families that a study searches, each with domains of its own in "
        "`[space.FAMILY]`. What one of them lacks is 0 in MLflow's columns.\n\n"
        + markdown_table([["family", "what it is"], *families]),
    ]
    return "\n\n".join(parts) + "\n"
