"""Names that can be registered, and models that a killed promotion leaves behind."""

from __future__ import annotations

import socket

import mlflow
import pytest
from mlflow import MlflowClient

from fmnist_search.errors import UserError
from fmnist_search.processes import process_identity
from fmnist_search.registry.register import check_model_name, delete_orphans
from fmnist_search.registry.tags import CHAMPION
from fmnist_search.registry.versions import get_version
from tests.unit.registry.registered import DEAD_PROCESS, promote_version


def test_the_name_of_a_prompt_is_refused(client: MlflowClient) -> None:
    check_model_name(client, "a new name")
    client.create_registered_model("a model")
    check_model_name(client, "a model")
    client.register_prompt("a_prompt", "Say {{it}}.")
    with pytest.raises(UserError, match="'a_prompt' is the name of a prompt in MLflow; choose another"):
        check_model_name(client, "a_prompt")


@pytest.mark.parametrize("name", ["mine", "my model", "a.b-c_d+e", "model@home", "Größe", "1", "latest", "m-1"])
def test_every_name_that_a_study_file_accepts_can_be_registered_and_found(client: MlflowClient, name: str) -> None:
    assert promote_version(client, name, 0.9) == ("1", CHAMPION)
    assert str(get_version(client, f"models:/{name}@champion").version) == "1"
    assert str(get_version(client, f"models:/{name}/1").version) == "1"


def test_a_model_that_was_never_registered_is_deleted_unless_its_promotion_still_runs(
    client: MlflowClient, name: str
) -> None:
    run = client.create_run("0").info.run_id
    marks = {
        "orphan": {"registered_model": name, "promoter": DEAD_PROCESS},
        "mine": {"registered_model": name, "promoter": process_identity()},
        "elsewhere": {"registered_model": name, "promoter": f"not-{socket.gethostname()} 1 5"},
        "of another name": {"registered_model": f"{name} too", "promoter": DEAD_PROCESS},
        "of another program": {},
    }
    models = {
        kind: client.create_logged_model("0", name="model", source_run_id=run, tags=tags).model_id
        for kind, tags in marks.items()
    }
    registered = client.create_logged_model("0", name="model", source_run_id=run, tags=marks["orphan"]).model_id
    client.create_registered_model(name)
    mlflow.set_tracking_uri(client.tracking_uri)  # the store looks up the model there
    client.create_model_version(name, source=f"models:/{registered}", run_id=run)
    delete_orphans(client, name, "0")
    left = {model.model_id: model for model in client.search_logged_models(["0"])}
    assert {kind for kind, model in models.items() if model in left} == marks.keys() - {"orphan"}
    assert "promoter" not in left[registered].tags
    # The run was open for the model, and its process is gone.
    assert client.get_run(run).info.status == "FINISHED"
