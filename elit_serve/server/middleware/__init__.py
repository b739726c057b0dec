"""What stands between a connection and the routes. Its entrance is `stack.add_all`, which says in which order."""
