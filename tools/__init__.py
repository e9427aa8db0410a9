"""Tools for maintainers, run from a checkout: ``python -m tools.check_detector``."""
