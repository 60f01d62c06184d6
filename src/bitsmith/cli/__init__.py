"""The command line, thin: one file per command, each of which parses, calls and prints."""

from bitsmith.cli.app import main

__all__ = ["main"]
