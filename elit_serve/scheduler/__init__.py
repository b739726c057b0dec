"""Which request gets how much compute, decided on values; standard library only."""
