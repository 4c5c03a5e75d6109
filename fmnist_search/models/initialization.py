"""Weights before the first step, by name."""

from __future__ import annotations

from collections.abc import Callable

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
    """Draw a fresh network's weights anew by `make_recipe.initial_weights`, from torch's global generator.

    A scheme of `torch.nn.init` draws the weights of convolutions and linear layers and sets their biases to 0;
    normalisation keeps its own. "imagenet" takes over those that others have trained, and leaves the other layers as
    they are; "default" leaves all of them.

    Raises:
        UserError: there are no ImageNet weights for this network, or they are out of reach.
    """
    if recipe.initial_weights == "default":
        return
    if recipe.initial_weights == "imagenet":
        # Strictly but for layers that this network has of its own: a name that it does not know is an error.
        network.load_state_dict({**network.state_dict(), **recipe.model.pretrained_weights()})
        return
    draw = INITIALIZERS[recipe.initial_weights]
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            draw(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
