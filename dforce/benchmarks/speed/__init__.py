"""How fast the library is, against plain re-implementations of the official structure: `dforce benchmark speed`."""
