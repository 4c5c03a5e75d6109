"""The MLflow store: events on disk, sent in their order, and runs read back."""
