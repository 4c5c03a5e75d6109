"""A soak test: a study is searched while faults are injected, and then its stores are checked."""
