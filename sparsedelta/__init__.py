"""Sparse deltas."""
