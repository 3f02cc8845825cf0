"""The command line of every program here: what the user can fix is one line, said once.

    parser = Parser(description=__doc__)
    try:
        work(parser.parse_args())
    except Refused as problem:
        refuse(problem)
"""
import argparse
import os
import sys
from pathlib import Path


class Refused(ValueError):
    """An error that the user can fix, in one line."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line. The launcher's --local_rank is accepted."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
                         **options)
        self.add_argument("--local_rank", help=argparse.SUPPRESS)

    def error(self, message):
        refuse(message)


def refuse(message, code=2, everywhere=False):
    """End the program with one line, said once on each machine, or by every rank."""
    if everywhere or os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr, flush=True)
    sys.exit(code)


def checked(work, *args):
    """work(*args), whose errors speak of what the user has given: Refused."""
    try:
        return work(*args)
    except (ValueError, OSError) as error:
        raise Refused(str(error)) from None


def positive(text):
    """A whole number above 0, as a type of an argument."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def boolean(text):
    """true or false, as a type of an argument."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"
