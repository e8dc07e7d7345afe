"""MTP604: does the model fit the ranks it is to be split over?"""

from __future__ import annotations

from collections.abc import Iterator

from mtpfix.model import Finding, Severity
from mtpfix.rules.context import Context, occurrences
from mtpfix.rules.findings import ROLE_WORDS, bundle, finding
from mtpfix.rules.registry import Rule, rule


@rule("MTP604", "tensor-parallel-shape", Severity.ERROR)
def tensor_parallel_shape(context: Context, this: Rule) -> Iterator[Finding]:
    """A size of the model cannot be split over the tensor-parallel ranks that `--tp` names.

    Heads (a vision tower's, too), feed-forward widths, tables of n-grams and the padded vocabulary must be multiples of
    the ranks; where a layer is stored in blocks, so must the share of each rank be whole blocks: 16 columns of NVFP4 in
    row-parallel layers, 128 x 128 of block FP8, 32 columns of MXFP8. The engine raises while it constructs the model.
    Key and value heads fewer than ranks are replicated, and a vocabulary is padded: that is no finding.

    Repair: choose a size that divides, or expert parallelism for the experts; a block-quantized module that does not
    split can be stored in 16 bits instead.
    """
    for group in bundle(context, occurrences(context, ["unsplittable"]), lambda one: one.event.text):
        what = "A number of the configuration" if group.modules == [""] else "Its shape"
        message = f"{what} does not fit {context.ranks} ranks; constructing {ROLE_WORDS[group.role]} raises."
        yield finding(context, this, group, message)
