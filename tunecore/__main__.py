"""``python -m tunecore``: the command line."""

from tunecore.cli import main

if __name__ == "__main__":
    main()
