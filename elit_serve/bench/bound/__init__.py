"""How good any schedule could be."""
