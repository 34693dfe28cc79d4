"""The tiny Llama's artifacts of `tests/artifact`, for the commands that hand them on."""

from tests.artifact.conftest import base_folder, build, built

__all__ = ["base_folder", "build", "built"]
