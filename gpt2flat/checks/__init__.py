"""Checks of a whole model: unit.py against a debug state from PyTorch, gradients.py against numeric gradients."""
