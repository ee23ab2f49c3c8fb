"""The encoder without Python: the library behind ``efft/efft.h`` and the folders that it opens."""
