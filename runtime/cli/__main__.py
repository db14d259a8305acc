"""`python -m sessile.cli`."""

from sessile.cli import main

main()
