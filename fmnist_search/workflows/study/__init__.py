"""Studies: search, promotion of the best recipes, preview."""
