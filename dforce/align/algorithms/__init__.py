"""Algorithms of alignment: a new one is one module here and one file in configs/algorithm. See `common`."""
