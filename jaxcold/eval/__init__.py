"""Evaluation: ranking, metrics, reports."""
