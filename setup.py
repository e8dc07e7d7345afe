from __future__ import annotations

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "mtpfix.checkpoint._fastheader",
            ["mtpfix/checkpoint/_fastheader.c"],
            py_limited_api=True,
            optional=True,  # without a compiler the Python reader does all the work
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
