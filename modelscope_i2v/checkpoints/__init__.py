"""From files on disk to modules: weights files, model directories, and what they are."""
