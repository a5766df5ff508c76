"""`python -m poller`: the same command as `ionos-poller`, for where no script is installed."""

from poller.cli import main

if __name__ == "__main__":
    main(prog_name="ionos-poller")
