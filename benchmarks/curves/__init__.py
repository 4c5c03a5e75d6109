"""Learning curves of random recipes, recorded once, and searches that replay them without training."""
