"""Builds the one compiled module.  OPUSAGENT_ANNOTATE=1 writes Cython's annotated HTML beside it."""
import os
from glob import glob

from Cython.Build import cythonize
from setuptools import Extension, setup

fastpath = Extension(
    "opusagent._fastpath",
    ["opusagent/_fastpath.pyx"],
    depends=sorted(glob("opusagent/fastpath/*")),
    extra_compile_args=["-O3", "-Wno-unused-function"],
)

setup(ext_modules=cythonize([fastpath], annotate=bool(os.environ.get("OPUSAGENT_ANNOTATE")), quiet=True))
