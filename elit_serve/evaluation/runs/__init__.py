"""Evaluations from beginning to end."""
