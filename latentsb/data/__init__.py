"""Data: sources of images, arrays and toys, and the stream that orders them."""
