"""Builds the C kernels; everything else is in pyproject.toml."""

import runpy

from setuptools import setup

setup(
    cffi_modules=runpy.run_path("csrc/build.py")["MODULES"],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
