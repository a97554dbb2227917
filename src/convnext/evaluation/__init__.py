"""Metrics of a trained model on held-out images, and their reports."""
