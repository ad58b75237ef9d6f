"""What can go wrong that a user can mend. Each error is one line of text and an exit code; the command line prints it,
nothing else does.

The text names the value and the remedy. Bugs are not wrapped: they keep their traceback.
"""

from pathlib import Path


class LiifError(Exception):
    """Base of every error that is the input's or the machine's, not the program's."""

    exit_code = 1


class UsageError(LiifError):
    """Options or arguments that contradict one another or are out of range."""

    exit_code = 2


class InputError(LiifError):
    """A picture or a folder of pictures that cannot be read or used."""

    exit_code = 1


class ModelError(LiifError):
    """A model that is unknown, damaged, unsafe to load or of another network."""

    exit_code = 3


class RangeError(ModelError):
    """Values of a model that leave the range of half precision."""


class MemoryBudgetError(LiifError):
    """Not enough memory even for the smallest plan."""

    exit_code = 4


class DeviceError(LiifError):
    """A device that has failed while it computed."""


class OutputError(LiifError):
    """A result that cannot be written: no space, no permission, a format that cannot hold it."""

    exit_code = 5


class ExistsError(OutputError):
    """A file that is there, and must not be replaced."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path}: already exists; add --overwrite to replace it, or name another file")
        self.path = path
