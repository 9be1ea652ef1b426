"""One file per autoencoder; the file's name is its word in a recipe."""
