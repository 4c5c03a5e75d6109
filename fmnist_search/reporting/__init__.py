"""Plots, pages, tables and texts, from plain values."""
