"""Clips to train and evaluate on: synthetic scenes, and folders or data sets of a user."""
