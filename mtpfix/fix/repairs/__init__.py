"""The ways to mend what goes wrong: each proposes operations for a trial, and says what they write and risk.

A way proposes; whether it helps is decided by trying it (`trial.Trial`). `safe` is False where a repair rests on a
guess, loses something that may be wanted, or changes what the model computes beyond rounding.
"""

from __future__ import annotations

from mtpfix.fix.repairs.configuration import extend_arrays, switch_off
from mtpfix.fix.repairs.declarations import leave_to_file, name_anew, restate_mixed, restate_uniform
from mtpfix.fix.repairs.files import drop_copies, drop_nested, reindex, synchronise
from mtpfix.fix.repairs.lists import allow_packed, list_plain, relist
from mtpfix.fix.repairs.repair import Way
from mtpfix.fix.repairs.scales import add_input_scales, declare_inputs, share_scales, weight_only
from mtpfix.fix.repairs.weights import copy_namesakes, dequantize, drop_unknown, free_names, quantize

WAYS: tuple[Way, ...] = (
    reindex,
    drop_nested,
    list_plain,
    relist,
    allow_packed,
    weight_only,
    extend_arrays,
    add_input_scales,
    declare_inputs,
    restate_mixed,
    name_anew,
    leave_to_file,
    restate_uniform,
    copy_namesakes,
    dequantize,
    quantize,
    free_names,
    drop_copies,
    drop_unknown,
    switch_off,
)
"""Every way, what writes no tensor first."""
FILES: tuple[Way, ...] = (reindex, drop_copies, drop_nested, synchronise, share_scales)
"""Ways that put in order what no release refuses to load, once the releases asked for load."""
TENSOR_WAYS: tuple[Way, ...] = (dequantize, quantize)
"""Ways that write tensors, told as alternatives to one that writes none."""

__all__ = ["FILES", "TENSOR_WAYS", "WAYS"]
