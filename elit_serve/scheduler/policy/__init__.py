"""Whom to take, and who runs next at which level: the elastic policy, and a plain one."""
