"""Trainings side by side: jobs, the pool of workers that runs them, and what a machine has room for."""
