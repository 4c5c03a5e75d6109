"""Registered models: packaged, loaded, compared and named champion."""
