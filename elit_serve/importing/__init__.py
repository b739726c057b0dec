"""Checkpoints of others, made into model directories: the published ELIT and SiT weights."""
