"""Addresses of artifacts: inside a project, moved with it, or deliberately elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from fmnist_search.artifact_root import ArtifactRoot, check_artifacts, check_existing_artifacts
from fmnist_search.errors import UserError


@pytest.fixture
def root(tmp_path: Path) -> ArtifactRoot:
    """The root of a project with the artifacts of one run."""
    (tmp_path / "now" / "mlruns" / "exp" / "run" / "artifacts").mkdir(parents=True)
    found = ArtifactRoot.of_store(f"sqlite:///{tmp_path / 'now' / 'mlflow.db'}")
    assert found
    return found


def test_artifacts_inside_the_project_are_its_own(root: ArtifactRoot) -> None:
    for uri in (str(root.folder / "exp" / "run"), (root.folder / "exp" / "not there").as_uri()):
        assert root.find_problem(uri) is None
        assert root.owns(uri)
    assert not root.owns(str(root.folder)), "the folder of all artifacts is not to be deleted"
    assert not root.owns(str(root.folder / "exp" / ".." / ".." / "other"))


@pytest.mark.parametrize("before", ["before", "mlruns/before", "x/mlruns/exp2"])
@pytest.mark.parametrize("exists", [False, True])
def test_artifacts_of_a_moved_or_copied_project_are_found_in_it(
    root: ArtifactRoot, tmp_path: Path, before: str, exists: bool
) -> None:
    old = tmp_path / before / "mlruns" / "exp" / "run" / "artifacts"
    if exists:
        old.mkdir(parents=True)
    for uri in (str(old), old.as_uri()):
        problem = root.find_problem(uri)
        assert problem
        assert str(old) in problem
        assert "fmnist-search relocate" in problem
        assert not root.owns(uri)
    found = root.find_counterpart(old)
    assert found
    assert (found.path, found.old_project) == (root.folder / "exp" / "run" / "artifacts", tmp_path / before)


def test_artifacts_that_are_deliberately_elsewhere_may_be_used_but_not_deleted(
    root: ArtifactRoot, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "big disk" / "run" / "artifacts"
    elsewhere.mkdir(parents=True)
    assert root.find_problem(str(elsewhere)) is None
    assert not root.owns(str(elsewhere))
    for uri in ("s3://bucket/mlruns/exp/run/artifacts", "mlflow-artifacts:/exp/run"):
        assert root.find_problem(uri) is None
        assert not root.owns(uri)


def test_missing_artifacts_are_named(root: ArtifactRoot, tmp_path: Path) -> None:
    store, missing = f"sqlite:///{root.project / 'mlflow.db'}", tmp_path / "gone" / "run"
    with pytest.raises(UserError, match=f"^run 'x': its artifacts are missing: there is no {missing}; restore it"):
        check_artifacts(store, str(missing), "run 'x'")
    inside = root.folder / "exp" / "gone"
    check_artifacts(store, str(inside), "run 'x'")
    with pytest.raises(UserError, match=f"^run 'x': its artifacts are missing: there is no {inside}; restore it$"):
        check_existing_artifacts(store, str(inside), "run 'x'")
    check_existing_artifacts("http://server", str(missing), "run 'x'")


def test_a_project_may_be_reached_by_a_symbolic_link(root: ArtifactRoot, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(root.project)
    by_link = ArtifactRoot(link)
    for one, uri in ((by_link, root.folder / "exp" / "run"), (root, link / "mlruns" / "exp" / "run")):
        assert one.find_problem(str(uri)) is None
        assert one.owns(str(uri))


def test_what_a_symbolic_link_leads_to_is_not_owned(root: ArtifactRoot, tmp_path: Path) -> None:
    (root.folder / "exp").rename(tmp_path / "exp")
    (root.folder / "exp").symlink_to(tmp_path / "exp")
    assert not root.owns(str(root.folder / "exp" / "run"))
    root.folder.rename(tmp_path / "mlruns")
    root.folder.symlink_to(tmp_path / "mlruns")
    assert root.find_problem(str(root.folder / "exp" / "run")) is None
    assert not root.owns(str(root.folder / "other"))
