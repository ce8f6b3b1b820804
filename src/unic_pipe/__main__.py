"""`python -m unic_pipe` is the command `unic-pipe`."""

from unic_pipe.cli.main import main

if __name__ == "__main__":
    main()
