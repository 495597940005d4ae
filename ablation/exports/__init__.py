"""Exports: a run's network and what is known of it, as files for people without this package."""
