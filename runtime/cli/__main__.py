"""`python -m sessile.cli`."""

from sessile.cli import main

if __name__ == "__main__":  # NOTE: processes that a command spawns import this again
    main()
