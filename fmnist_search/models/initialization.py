"""The initial weights of a network, by the name of a scheme."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from fmnist_search.recipe.recipe import Recipe

INITIALIZERS: dict[str, Callable[[Tensor], Tensor]] = {
    "kaiming_normal": lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="relu"),
    "kaiming_uniform": lambda weight: nn.init.kaiming_uniform_(weight, nonlinearity="relu"),
    "xavier_normal": nn.init.xavier_normal_,
    "xavier_uniform": nn.init.xavier_uniform_,
    "orthogonal": nn.init.orthogonal_,
}


def set_initial_weights(network: nn.Module, recipe: Recipe) -> None:
    """Set the weights of a new network by `recipe.initial_weights`, drawn from torch's global generator.

    A scheme of `torch.nn.init` draws the weights of convolutions and linear layers and sets their biases to 0; it does
    not change normalisation layers. "imagenet" loads pretrained weights and does not change the other layers;
    "default" changes nothing.

    Raises:
        UserError: if there are no ImageNet weights for this network, or they cannot be downloaded.
    """
    if recipe.initial_weights == "default":
        return
    if recipe.initial_weights == "imagenet":
        load_pretrained_weights(network, recipe.model.pretrained_weights())
        return
    draw = INITIALIZERS[recipe.initial_weights]
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            draw(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def load_pretrained_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load weights by name. Layers without pretrained weights keep theirs; an unknown name is an error."""
    network.load_state_dict({**network.state_dict(), **weights})
