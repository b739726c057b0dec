"""`python -m elit_serve.cli`, as torchrun starts it."""

from elit_serve.cli import main

main()
