"""The roundings, one file each."""
