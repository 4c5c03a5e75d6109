"""One training: the loop, its state, its evaluation, its checkpoints."""
