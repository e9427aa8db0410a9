"""The steps of ``tools/train_embedded.sh``, which trains the embedded models."""
