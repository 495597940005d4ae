"""From a command line to one validated ``Config``."""
