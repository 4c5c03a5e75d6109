"""Tests of `training.state`: batches of an epoch, and initial weights."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fmnist_search.training.state import batch_sizes


@given(st.integers(2, 60_000), st.integers(2, 60_000))
def test_batches_cover_all_images_and_none_holds_just_one(images: int, batch_size: int) -> None:
    sizes = batch_sizes(images, batch_size)
    assert sum(sizes) == images
    assert min(sizes) >= 2
    assert set(sizes[:-1]) <= {batch_size}
    assert sizes[-1] <= batch_size + 1
    assert len(sizes) in (images // batch_size, images // batch_size + 1)
