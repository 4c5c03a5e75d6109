"""Pages of the documentation that `make docs` writes: the keys of study files, and the presets."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping

from pydantic.fields import FieldInfo

from fmnist_search.config.schema import VARIANTS, variant_name
from fmnist_search.config.sections import Section, section_of
from fmnist_search.config.space import NOT_SEARCHABLE, shared_hyperparameters
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.models.presets import PRESETS
from fmnist_search.recipe.datasets import DEFAULT_DATASET, get_dataset
from fmnist_search.recipe.families import FAMILIES
from fmnist_search.recipe.formatting import format_value
from fmnist_search.recipe.groups import Data
from fmnist_search.recipe.hyperparameters import Hyperparameter, hyperparameters
from fmnist_search.text import markdown_table

TOP_LEVEL_KEYS = {"name", "question", "builds_on", "experiment", "seed"}


# -------------------------------------------------------------------------- the keys of study files


def study_keys_page() -> str:
    """Return a Markdown page with the default and the meaning of every key of a study file."""
    parts = [
        "# Every key of a study file",
        "`make docs` writes this page from the code that reads study files. [studies.md](studies.md) explains how to "
        "write one; `fmnist-search studies check FILE` checks one; editors check and complete them with "
        "[studies/schema.json](../studies/schema.json).",
        "## The study\n\n" + _fields_table(StudyConfig, TOP_LEVEL_KEYS),
        "## [data]\n\n" + _hyperparameters_table(hyperparameters(Data)),
    ]
    for name, field in StudyConfig.model_fields.items():
        if name in VARIANTS:
            parts += _variant_parts(name, field)
        elif section := section_of(field.annotation):
            parts += _section_parts(name, section)
    shared = {name: spec for name, spec in shared_hyperparameters().items() if name not in NOT_SEARCHABLE}
    parts.append(
        "## [space.common]\n\nHyperparameters of every family. A list is a choice, a table "
        "`{ low = .., high = .., log = true }` (or `step = ..`) a range, a scalar a fixed value. A hyperparameter that "
        f"is not listed keeps its default. `family` lists the families: {', '.join(f'`{name}`' for name in FAMILIES)}."
        "\n\n" + _hyperparameters_table(shared)
    )
    parts += [
        f"## [space.{name}]\n\n{_hyperparameters_table(hyperparameters(family))}" for name, family in FAMILIES.items()
    ]
    return "\n\n".join(parts) + "\n"


def _variant_parts(name: str, field: FieldInfo) -> list[str]:
    default = variant_name(type(field.default))
    head = (
        f'## [{name}]\n\n{field.description} The name alone is enough: `{name} = "{default}"`; a table without one is '
        f"that of `{default}`."
    )
    return [head] + [
        f'### {name} = "{variant_name(section)}"\n\n{_docstring(section)}\n\n{_fields_table(section)}'.rstrip()
        for section in VARIANTS[name]
    ]


def _section_parts(name: str, section: type[Section]) -> list[str]:
    """Return the parts of a table and of the tables in it."""
    parts = [f"## [{name}]\n\n{_docstring(section)}\n\n{_fields_table(section)}"]
    for key, field in section.model_fields.items():
        if inner := section_of(field.annotation):
            parts += _section_parts(f"{name}.{key}", inner)
    return parts


def _docstring(section: type[Section]) -> str:
    lines = (section.__doc__ or "").strip().splitlines()
    return "\n".join(line.strip() for line in lines)


def _fields_table(section: type[Section], only: set[str] | None = None) -> str:
    rows = [
        [f"`{name}`", _format_default(field), _field_description(section, name, field)]
        for name, field in section.model_fields.items()
        if (only is None or name in only)
        and not (name == "name" and section is not StudyConfig)
        and not section_of(field.annotation)
    ]
    return markdown_table([["key", "default", "meaning"], *rows]) if rows else ""


def _field_description(section: type[Section], name: str, field: FieldInfo) -> str:
    schema = section.model_json_schema()["properties"].get(name, {}) if section is not StudyConfig else {}
    choices = f"; one of {', '.join(map(str, schema['enum']))}" if "enum" in schema else ""
    return (field.description or name.replace("_", " ")) + choices


def _format_default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default is None or field.default in ("", ()) or field.default == {}:
        return "none"
    if isinstance(field.default, tuple):
        return f"`{json.dumps(field.default)}`"
    return f"`{format_value(field.default)}`"


def _hyperparameters_table(specs: Mapping[str, Hyperparameter]) -> str:
    rows = [[f"`{name}`", f"`{format_value(s.default)}`", s.description, s.expected()] for name, s in specs.items()]
    return markdown_table([["key", "default", "meaning", "values"], *rows])


# ----------------------------------------------------------------------------------------- the presets


def presets_page() -> str:
    """Return a Markdown page with every preset and every family."""
    presets = [
        [
            f"[`{name}`](../studies/recipes/{name}.toml)",
            f"`{preset.recipe.model.family}`",
            f"{preset.parameters:,}",
            f"{preset.mult_adds:,}",
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
        "`make docs` writes this page from the code. A family is a kind of network with hyperparameters that a study "
        "can search. A preset is one published network of a family, with its author's training.",
        "```console\n"
        "$ fmnist-search models                                      # this page's table\n"
        "$ fmnist-search models show lenet                           # its layers, their shapes and parameters\n"
        "$ fmnist-search models show lenet --set model.width_1=64    # the same network, changed\n"
        "$ fmnist-search models show lenet --recipe > lenet.toml     # its recipe, to train\n"
        "```",
        "## Presets\n\n"
        "Parameters are counted, and agree with the author's count wherever there is one. Multiply-adds are those of "
        "one image. Accuracies are the authors' own, in percent of the 10,000 test images of Fashion-MNIST unless "
        "stated otherwise. Unlike the recipes here, the authors used no validation images unless stated otherwise. "
        "Where an author does not describe the training, it is Adam with a learning rate of 1e-3, batches of 128 "
        f"images and 10 epochs. {_other_datasets_note()}\n\n"
        "[reference-results.md](reference-results.md) has the accuracies that they reach when trained here.\n\n"
        + markdown_table([["preset", "family", "parameters", "multiply-adds", "published", "notes"], *presets]),
        "## Families\n\n"
        "`[space.common] family` lists the families that a study searches, each with domains of its own in "
        "`[space.FAMILY]`. In MLflow's columns, a hyperparameter that a family does not have is 0.\n\n"
        + markdown_table([["family", "description"], *families]),
    ]
    return "\n\n".join(parts) + "\n"


def _other_datasets_note() -> str:
    """Return a sentence about the presets that their authors trained on another dataset."""
    others = [preset for preset in PRESETS.values() if preset.recipe.data.dataset != DEFAULT_DATASET]
    named = ", ".join(f"`{preset.name}` ({get_dataset(preset.recipe.data.dataset).title})" for preset in others)
    remedy = f"`--set data.dataset={DEFAULT_DATASET}` trains them on {get_dataset(DEFAULT_DATASET).title}"
    return f"The recipes of some presets use another dataset, like their authors: {named}; {remedy}."
