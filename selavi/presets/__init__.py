"""Configurations by name, as YAML: ``paper`` as published, ``tiny`` for CPUs, ``features``."""
