"""The generated pages of the documentation are complete and up to date."""

from __future__ import annotations

from fmnist_search.config.pages import presets_page, study_keys_page
from fmnist_search.config.schema import VARIANTS, variant_name
from fmnist_search.config.study_config import StudyConfig
from fmnist_search.models.presets import PRESETS
from fmnist_search.recipe.families import FAMILIES
from fmnist_search.recipe.hyperparameters import hyperparameters
from tests.unit.config.study_files import ROOT


def test_pages_in_the_repository_are_up_to_date() -> None:
    for name, page in {"study-keys.md": study_keys_page(), "models.md": presets_page()}.items():
        assert (ROOT / "docs" / name).read_text() == page, f"docs/{name} is out of date: run `make docs`"


def test_page_names_every_key() -> None:
    page = study_keys_page()
    for family, architecture in FAMILIES.items():
        assert f"## [space.{family}]" in page
        assert all(f"| `{name}` |" in page for name in hyperparameters(architecture))
    for key, variants in VARIANTS.items():
        for section in variants:
            assert f'### {key} = "{variant_name(section)}"' in page
            assert all(f"| `{name}` |" in page for name in section.model_fields if name != "name")
    for name, field in StudyConfig.model_fields.items():
        assert f"| `{name}` |" in page or f"## [{name}" in page, (name, field)


def test_page_names_every_preset_and_family() -> None:
    page = presets_page()
    assert all(f"[`{name}`](../studies/recipes/{name}.toml)" in page for name in PRESETS)
    assert all(f"[`{name}`](study-keys.md#space{name})" in page for name in FAMILIES)
