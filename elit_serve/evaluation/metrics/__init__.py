"""Figures of sets of pictures, with their uncertainty."""
