"""The torch-free vocabulary of the whole product: levels and budgets, guidance, time grid, plans, kinds of steps."""
