"""The command line: ``modelscope-i2v``, or ``python -m modelscope_i2v``.

Modules here import torch, ModelScope and the like inside functions, so that help and mistakes are
told at once.
"""
