"""Attention and matrix products between values."""
