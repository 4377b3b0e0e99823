"""Algorithms of alignment: a new one is one class here and one file in configs/algorithm. See `common`."""
