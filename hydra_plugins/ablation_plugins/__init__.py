"""Hydra plugins of this project: Hydra accepts plugin classes only in this namespace."""
