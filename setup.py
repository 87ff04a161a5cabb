"""The one part of the package that is compiled; all else stands in pyproject.toml, where this is still experimental."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "shardline.pipeline._native",
            ["pipeline/_native.c", "pipeline/_shrink.c"],
            depends=["pipeline/_pixels.h"],
            extra_compile_args=["-O3", "-ffp-contract=off"],
            py_limited_api=True,
            optional=True,  # where there is no compiler, the package installs without it, and OpenCV does the same
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},  # one wheel for every Python from 3.11 on
)
