"""Measurements behind the claims: one script for each question, results as JSON and Markdown under `results/`."""
