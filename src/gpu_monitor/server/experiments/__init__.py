"""Takes experiments: segments by offset, files by digest, signs of life."""
