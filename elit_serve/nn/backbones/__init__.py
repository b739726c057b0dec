"""Backbones: `backbone` says what each is to others, `table` names them all, and each has a file of its own."""
