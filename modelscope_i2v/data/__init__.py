"""Clips to train on and to measure with: drawn ones, and folders of a user's own."""
