"""The search with Optuna: its storage, samplers, pruners and what a study has found."""
