"""Arrivals, rivals, bounds and load: measuring the scheduler and the server from outside."""
