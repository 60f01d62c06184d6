"""Rules by which activation ranges follow training, one a file."""
