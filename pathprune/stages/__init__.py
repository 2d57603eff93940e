"""Stages of a recipe: each opens files, knows the accelerator, and calls the pure packages."""
