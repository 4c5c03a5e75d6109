"""Families of networks, one file each, and the `Classifier` around them.

To add a family: a file here with a dataclass of its hyperparameters under `@register_family("name")`, and one import
line below. Study files, recipes, the search and the registry-driven tests know it from then on.
"""

from fmnist_search.models import cnn, convnet, mlp, resnet, simple_cnn, vgg

__all__ = ["cnn", "convnet", "mlp", "resnet", "simple_cnn", "vgg"]
