"""What `--json` prints of champions, ensembles, test scores, presets and layers; the keys are written here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fmnist_search.models.presets import Preset
    from fmnist_search.registry.evaluation import ModelComparison, TestScore
    from fmnist_search.reporting.model_summary import LayerSummary
    from fmnist_search.results.champion import Champion
    from fmnist_search.results.training import Accuracy
    from fmnist_search.workflows.ensemble import EnsembleResult
    from fmnist_search.workflows.registration import RegisteredVersion

Json = dict[str, Any]


def champion_to_dict(champion: Champion) -> Json:
    """Return a champion with the score that confirmed it and its accuracy on the test images."""
    return {
        "confirmed": {
            "trial": champion.confirmed_score.trial,
            "recipe": champion.confirmed_score.recipe.to_flat_dict(),
            "accuracies": champion.confirmed_score.accuracies,
        },
        "recipe": champion.recipe.to_flat_dict(),
        "test": _interval_to_dict(champion.test),
        "model": champion.model,
        "version": champion.version,
        "alias": champion.alias,
        "verdict": champion.verdict,
        "members": champion.members,
    }


# -------------------------------------------------------------------------------------------- models


def ensemble_to_dict(result: EnsembleResult) -> Json:
    """Return an ensemble, its members, and its registered version if it has one."""
    return {
        "run_id": result.run_id,
        "accuracy": result.evaluation.accuracy if result.evaluation else None,
        "loss": result.evaluation.loss if result.evaluation else None,
        "validation_images": result.validation_images,
        **({"test": accuracy_to_dict(result.test)} if result.test else {}),
        "members": [
            {
                "run_id": member.run.run_id,
                "name": member.run.name,
                "accuracy": member.evaluation.accuracy if member.evaluation else None,
                "loss": member.evaluation.loss if member.evaluation else None,
                **({"test": accuracy_to_dict(member.test)} if member.test else {}),
            }
            for member in result.members
        ],
        "registered": _version_to_dict(result.registered) if result.registered else None,
    }


def _version_to_dict(version: RegisteredVersion) -> Json:
    return {
        "model": version.model,
        "version": version.version,
        "alias": version.alias,
        "verdict": version.verdict,
        "test": accuracy_to_dict(version.test),
    }


def _interval_to_dict(accuracy: Accuracy) -> Json:
    counts = {"hits": accuracy.correct, "images": accuracy.images, "low": accuracy.low, "high": accuracy.high}
    return {**counts, "loss": accuracy.loss}


def accuracy_to_dict(accuracy: Accuracy) -> Json:
    """Return an accuracy on the test images with its interval and the loss."""
    return {**_interval_to_dict(accuracy), "accuracy": accuracy.value}


def test_score_to_dict(score: TestScore) -> Json:
    """Return the accuracy of a model on the test images, and how often it was tested."""
    return {"model": score.model, **accuracy_to_dict(score.accuracy), "evaluations": score.evaluations}


def comparison_to_dict(comparison: ModelComparison) -> Json:
    """Return the comparison of two models on the same test images."""
    return {
        "models": [test_score_to_dict(comparison.first), test_score_to_dict(comparison.second)],
        "both": comparison.both,
        "only_first": comparison.only_first,
        "only_second": comparison.only_second,
        "neither": comparison.neither,
        "p_value": comparison.p_value,
        "better": comparison.better.model if comparison.better else None,
    }


def preset_to_dict(preset: Preset, parameters: int | None, mult_adds: int | None) -> Json:
    """Return a preset with the size of its network."""
    return {
        "preset": preset.name,
        "family": preset.recipe.model.family,
        "parameters": parameters,
        "mult_adds": mult_adds,
        "published": preset.published_accuracy,
        "notes": preset.notes,
    }


def layer_to_dict(layer: LayerSummary) -> Json:
    """Return a layer of a network."""
    return {
        "name": layer.name,
        "kind": layer.kind,
        "output": layer.output_shape,
        "parameters": layer.parameters,
        "mult_adds": layer.mult_adds,
    }
