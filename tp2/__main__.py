"""``python -m tp2`` is ``tp2``."""

from tp2.cli import main

if __name__ == "__main__":
    main()
