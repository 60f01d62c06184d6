"""The version of bitsmith, stated once: the package, its files and its build read it here."""

__all__ = ["__version__"]

__version__ = "0.1.0"
