"""Learning curves of random recipes, recorded once, and searches replayed against them without any training."""
