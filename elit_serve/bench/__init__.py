"""Simulation, rival policies, the clairvoyant bound, and an open-loop load generator. Knows no torch."""
