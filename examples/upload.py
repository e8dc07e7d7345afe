"""Upload a checkpoint to the Hub only if it will load: `python upload.py FOLDER ORG/NAME`."""

from __future__ import annotations

import sys
from pathlib import Path

from huggingface_hub import HfApi

import mtpfix


def main(folder: str, repository: str) -> None:
    """Scan the folder, then upload it; a finding ends the program with its sentence."""
    try:
        mtpfix.scan(Path(folder), engines=["vllm>=0.20"]).raise_if_failed()
    except mtpfix.MtpfixError as error:
        sys.exit(f"not uploaded: {error.message}\n{error.hint}")
    HfApi().upload_folder(folder_path=folder, repo_id=repository)


if __name__ == "__main__":
    main(*sys.argv[1:3])
