"""The console script, and ``python -m liif_cli``."""

import signal


def main() -> None:
    """Run the command line."""
    # While modules are loaded nothing has to be tidied up: Ctrl-C just ends the program, without a traceback. What is
    # ignored from the start stays ignored.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from liif_cli.cli import main as command_line
    from liif_cli.cli.stopping import leave

    try:
        command_line()
    except SystemExit as ended:
        leave(ended)


if __name__ == "__main__":
    main()
