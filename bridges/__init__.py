"""One file per method; the file's name is its word in a recipe."""
