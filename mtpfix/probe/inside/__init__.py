"""What runs inside the interpreter that holds an engine: the standard library, the engine, and nothing of `mtpfix`.

`start.py` is executed by its path and imports its neighbours under a name of their own, so that neither `mtpfix` nor
any package beside it is visible to the engine. Imports here are relative for that reason, and the language is that of
Python 3.10. Refuses to know any checkpoint: no name of a family or of a tensor occurs here.
"""

from __future__ import annotations
