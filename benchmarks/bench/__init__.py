"""The benchmark beside stock ModelScope and diffusers: ``python -m benchmarks.bench``."""
