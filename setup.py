from __future__ import annotations

from setuptools import Extension, setup

NVFP4 = "mtpfix/nvfp4"

setup(
    ext_modules=[
        Extension(
            "mtpfix.checkpoint._fastheader",
            ["mtpfix/checkpoint/_fastheader.c"],
            py_limited_api=True,
            optional=True,  # without a compiler the Python reader does all the work
        ),
        Extension(
            "mtpfix.nvfp4._nvfp4",
            [f"{NVFP4}/{name}.c" for name in ("_nvfp4", "portable", "avx2", "avx512", "neon")],
            depends=[f"{NVFP4}/core.h", f"{NVFP4}/kernels.h", f"{NVFP4}/avx2.h"],
            extra_compile_args=["-O3", "-g0", "-std=c11", "-ffp-contract=off", "-fno-fast-math"],
            py_limited_api=True,
            optional=True,  # without a compiler plain torch does all the work
        ),
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
