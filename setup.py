"""Packaging; tool settings stand in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent


def lines(name):
    """The requirements in a file, without comments."""
    text = (HERE / name).read_text(encoding="utf-8")
    return [line.split(" #")[0].strip() for line in text.splitlines() if line and not line.startswith("#")]


version = {}
exec((HERE / "modelscope_i2v" / "version.py").read_text(encoding="utf-8"), version)

setup(
    name="modelscope-i2v",
    version=version["__version__"],
    description="ModelScope's image-to-video, video-to-video and text-to-video tasks on today's libraries",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["modelscope_i2v", "modelscope_i2v.*"]),
    package_data={"modelscope_i2v.embedded": ["*.png", "*.safetensors", "*/*.json", "*/*.safetensors"]},
    install_requires=lines("requirements.txt"),
    extras_require={
        "xformers": ["xformers"],
        "quantization": ["torchao>=0.18"],
        "evaluate": ["matplotlib", "opencv-python-headless", "scikit-image", "torchmetrics"],
        "train": ["accelerate", "matplotlib", "peft", "safetensors", "tensorboard"],
        "test": lines("tests/requirements.txt"),
    },
    entry_points={"console_scripts": ["modelscope-i2v = modelscope_i2v.cli.main:main"]},
)
