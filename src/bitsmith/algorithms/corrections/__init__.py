"""Members of the family of corrections, one file each."""
