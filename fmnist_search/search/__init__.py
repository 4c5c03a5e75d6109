"""The search itself: spaces become recipes, samplers and pruners by name, and where Optuna keeps its trials."""
