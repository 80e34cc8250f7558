"""Techniques for training language models with less compute, usable on their own."""

__version__ = "0.1.0"
