"""Tensor mathematics without state: margins, boundaries, penalties, precision and modes."""
