"""ModelScope's own implementation of the three tasks, made to run on a CPU with today's libraries.

What the parity tests compare with. Nothing of the package depends on it.
"""
