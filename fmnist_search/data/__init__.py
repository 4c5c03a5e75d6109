"""The images of a dataset: found or downloaded, verified, split, and copied to a device."""

from typing import TYPE_CHECKING

from fmnist_search._lazy import attach

if TYPE_CHECKING:
    from fmnist_search.data.files import DataSource
    from fmnist_search.data.images import Images, LabelledImages
    from fmnist_search.data.loading import load_images, read_test_set

__all__ = ["DataSource", "Images", "LabelledImages", "load_images", "read_test_set"]
__getattr__, __dir__ = attach(
    __name__,
    {
        "DataSource": "files",
        "Images": "images",
        "LabelledImages": "images",
        "load_images": "loading",
        "read_test_set": "loading",
    },
)
