"""Recommenders on data frames: fit, add items, recommend, save, load."""
