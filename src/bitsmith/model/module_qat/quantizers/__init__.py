"""Weight quantizers, one a file; each registers under its name when it is first looked up."""
