"""Builds the C kernels; everything else is in pyproject.toml."""

import runpy
import sysconfig

from setuptools import setup

build = runpy.run_path("csrc/build.py")
setup(
    cffi_modules=build["MODULES"],
    cmdclass={"build_ext": build["BuildKernels"]},
    options={} if sysconfig.get_config_var("Py_GIL_DISABLED") else {"bdist_wheel": {"py_limited_api": "cp311"}},
)
