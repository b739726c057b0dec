"""Policies on a simulated device."""
