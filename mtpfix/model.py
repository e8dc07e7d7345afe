"""The words of the domain: what a checkpoint holds, what an engine builds, and what follows from the two.

Only types live here. They are frozen, know nothing of files, and import the standard library and our errors alone.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from mtpfix.errors import EXIT_FINDINGS, EXIT_NOTHING, EXIT_OK, EXIT_UNABLE, FindingsError, MtpfixError

Role = Literal["target", "draft"]
"""The main model, or the MTP branch that drafts for it."""

ROLES: tuple[Role, Role] = ("target", "draft")
"""Both, the main model first."""

EXPERT = "{}"
"""Stands for the expert number in the name of tensors that differ in nothing else."""


class Format(StrEnum):
    """How the numbers of one module are stored, or how an engine builds its parameters."""

    BF16 = "bf16"
    FP16 = "fp16"
    FP32 = "fp32"
    FP8 = "fp8"  # one scale for the tensor
    FP8_CHANNEL = "fp8_channel"  # one scale for each output row
    FP8_BLOCK = "fp8_block"  # one scale for each 128 x 128 block
    NVFP4 = "nvfp4"  # 4-bit weights and activations, one E4M3 scale for each 16 columns
    NVFP4_A16 = "nvfp4_a16"  # the same weights, 16-bit activations
    MXFP4 = "mxfp4"  # 4-bit weights, one E8M0 scale for each 32 columns
    MXFP8 = "mxfp8"  # 8-bit weights, one E8M0 scale for each 32 columns
    INT4 = "int4"
    INT8 = "int8"
    UNKNOWN = "unknown"

    @property
    def plain(self) -> bool:
        """Whether the weight holds its own numbers, without scales."""
        return self in (Format.BF16, Format.FP16, Format.FP32)


class Dialect(StrEnum):
    """Whose names and conventions the scales of a quantized module follow."""

    MODELOPT = "modelopt"  # weight, weight_scale, weight_scale_2, input_scale
    COMPRESSED_TENSORS = "compressed-tensors"  # weight_packed, weight_global_scale: reciprocals
    AMAX = "amax"  # the weight without a suffix, and after its name scale, scale2, input_amax
    OTHER = "other"


class Severity(StrEnum):
    """How much a finding hurts: an error stops or spoils loading, a warning may, a note does not."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"

    def reaches(self, level: Severity) -> bool:
        """Return whether this hurts at least as much as `level`."""
        order = list(Severity)
        return order.index(self) <= order.index(level)


class Confidence(StrEnum):
    """Whether a prediction was confirmed by running the engine, or derived from its source code."""

    VERIFIED = "verified"
    DERIVED = "derived"


# ---------------------------------------------------------------------------------------------- stored


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of one shard, or all tensors of that shard that differ only in their expert number.

    `name` holds `{}` in place of the expert number when `experts` is not None; `begins` are byte offsets in the
    data section, one for each expert, in the order of `experts`.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: str
    begins: array[int]
    experts: array[int] | None = None

    @property
    def count(self) -> int:
        """How many tensors this stands for."""
        return len(self.begins)


@dataclass(frozen=True, slots=True)
class Shard:
    """One safetensors file: `size` in bytes, `header` bytes before the data, `tensors` it holds."""

    name: str
    size: int
    header: int
    tensors: int
    indexed: bool
    metadata: Mapping[str, str] = field(default_factory=dict)


class Fault(StrEnum):
    """What can be wrong between the index and the shards, or with one file."""

    SHARD_ABSENT = "shard-absent"  # the index names a file that is not there
    SHARD_UNINDEXED = "shard-unindexed"  # a file holds tensors, the index does not name it
    TENSOR_ABSENT = "tensor-absent"  # the index names a tensor that its file does not hold
    TENSOR_UNINDEXED = "tensor-unindexed"  # an indexed file holds a tensor the index does not name
    TENSOR_ELSEWHERE = "tensor-elsewhere"  # the tensor lies in another file than the index says
    TENSOR_DUPLICATE = "tensor-duplicate"  # several files hold a tensor of this name
    TOTAL_SIZE = "total-size"  # metadata.total_size is not the sum of the tensors' bytes
    PATH_REFUSED = "path-refused"  # the index names a path that leaves the folder or is not plain
    INDEX_UNREADABLE = "index-unreadable"
    CONFIG_UNREADABLE = "config-unreadable"
    SHARD_UNREADABLE = "shard-unreadable"  # header malformed, or the file cannot be read
    LFS_POINTER = "lfs-pointer"  # a git-lfs pointer stands where the weights should be
    ODD_NAME = "odd-name"  # a tensor's name holds control, bidirectional or brace characters


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault the reader met, told in a sentence; `files` and `names` are capped samples, `count` is not."""

    fault: Fault
    message: str
    files: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    count: int = 1
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor of a module: `order` is (shard, full name of the first tensor), for an engine's loading order.

    `others` are those that other experts of the same entry have in its place, of another dtype or shape.
    """

    suffix: str
    dtype: str
    shape: tuple[int, ...]
    order: tuple[str, str]
    experts: frozenset[int] | None = None
    others: tuple[Part, ...] = ()

    @property
    def everyone(self) -> frozenset[int] | None:
        """Return the experts that have it in any way."""
        return self.experts.union(*(other.experts or () for other in self.others)) if self.experts else self.experts


@dataclass(frozen=True, slots=True)
class Stored:
    """One module as it lies on disk: its format, its tensors by suffix, and what its format lacks.

    `module` is the name without suffix, `{}` standing for the expert number. `shape` is logical: (rows, columns)
    of the unpacked weight, with the expert count in front for a fused 3-D weight. `missing` are suffixes that
    `format` needs and that are not there; `odd` are sentences about parts of the wrong shape or dialect.
    """

    module: str
    format: Format
    dialect: Dialect
    shape: tuple[int, ...]
    parts: Mapping[str, Part]
    experts: frozenset[int] | None = None
    missing: tuple[str, ...] = ()
    odd: tuple[str, ...] = ()
    bytes: int = 0


# ---------------------------------------------------------------------------------------------- declared


@dataclass(frozen=True, slots=True)
class Scheme:
    """What a declaration says of the modules it names; `weights` and `inputs` are None where 16-bit."""

    format: Format
    algo: str
    group_size: int | None = None
    activations_quantized: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """One entry of `config_groups`: the modules it targets (names, class names, or `re:`) and their scheme."""

    name: str
    targets: tuple[str, ...]
    scheme: Scheme


@dataclass(frozen=True, slots=True)
class Declaration:
    """One quantization block: where it stands, which method reads it, and the list that decides.

    `file` and `path` say where the block is ("config.json", ("text_config", "quantization_config")).
    `method` is modelopt, compressed-tensors, fp8, mxfp4, quark, auto-round, gptq, awq or the text found.
    `excludes` is the list under `exclude_key`; `layers` maps names to schemes (`quantized_layers`).
    `not_understood` names, in sentences, what this reader does not know: it is never guessed.
    """

    file: str
    path: tuple[str, ...]
    method: str
    dialect: Literal["nested", "flat"]
    algo: str | None
    scheme: Scheme | None
    exclude_key: str
    excludes: tuple[str, ...]
    layers: Mapping[str, Scheme] = field(default_factory=dict)
    groups: tuple[Group, ...] = ()
    group_size: int | None = None
    kv_cache: str | None = None
    not_understood: tuple[str, ...] = ()
    raw: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything read from one folder or repository: never a weight, except scalars a rule asks for.

    `declarations` are in file order: config.json first, top level before nested, then hf_quant_config.json.
    `unread` names files that could not be read, shards above all; while it is not empty nothing is called clean.
    `has_index` is whether an index says where tensors lie; `lost` are names it holds that no file does (`{}` for expert
    numbers). `root` is None in a repository, and `revision` the commit there.
    `trusted` are folders outside `root` that its links may lead into.
    Where `headers` is False no shard was opened: `tensors` is empty, and `lost` holds every name of the index.
    `left_out` are shards that by the index hold nothing of the branch and were not asked for, `elsewhere` the names
    that it places in them (`{}` for expert numbers): of the main model nothing else is known then.
    """

    ref: str
    root: Path | None
    revision: str | None
    config: Mapping[str, Any]
    declarations: tuple[Declaration, ...]
    shards: tuple[Shard, ...]
    tensors: tuple[Tensor, ...]
    problems: tuple[Problem, ...]
    unread: tuple[str, ...]
    has_index: bool
    lost: tuple[str, ...] = ()
    trusted: tuple[Path, ...] = ()
    headers: bool = True
    left_out: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Bytes of all shards together."""
        return sum(shard.size for shard in self.shards)

    @property
    def tensor_count(self) -> int:
        """Tensors of all shards together."""
        return sum(shard.tensors for shard in self.shards)


# ---------------------------------------------------------------------------------------------- built


@dataclass(frozen=True, slots=True)
class Built:
    """One module as an engine builds it: `modules` are the names on disk, `prefix` what the engine asks its lists.

    `layer` is the class of layer, which decides what a mismatch does; `because` cites `file:line@version`.
    """

    modules: tuple[str, ...]
    prefix: str
    layer: str
    format: Format
    because: tuple[str, ...]
    excluded_by: str | None = None


class Outcome(StrEnum):
    """What happens to one module when the engine loads it."""

    OK = "ok"
    CRASH = "crash"
    SILENT = "silent"


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happens while an engine loads: which tensor, what the engine does, and the text it prints.

    `kind` names the cause in the closed vocabulary of `engines/predict.py`; `error` is the exception's class,
    empty when the engine says nothing.
    """

    kind: str
    outcome: Outcome
    module: str
    tensor: str
    error: str
    text: str
    because: tuple[str, ...]
    order: tuple[int, str, str]
    count: int = 1


class Verdict(StrEnum):
    """What a whole model does: loads completely, raises, loads with wrong or unwritten weights, or is not there."""

    LOADS = "loads"
    FAILS = "fails"
    SILENT = "silent"
    ABSENT = "absent"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class ModelPrediction:
    """What an engine release does with the target or the draft: `events` in loading order, `error` the first raised."""

    role: Role
    verdict: Verdict
    error: str | None
    error_tensor: str | None
    built: tuple[Built, ...]
    events: tuple[Event, ...]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What one engine release does with a checkpoint."""

    engine: str
    version: str
    confidence: Confidence
    target: ModelPrediction
    draft: ModelPrediction
    method: str | None
    deciding: Declaration | None


# ---------------------------------------------------------------------------------------------- observed


@dataclass(frozen=True, slots=True)
class BuiltModule:
    """One module that a running engine built: `prefix` asks its lists, `path` leads to it, `layer` is its class."""

    prefix: str
    path: str
    layer: str
    format: str


@dataclass(frozen=True, slots=True)
class Observation:
    """What a running engine did with the target or the draft.

    `error` is the exception's class and `text` its text, unshortened; `tensor` was being loaded when it was raised in
    `phase` (configure, construct, load, finish, share), `frames` are `file:line`, the innermost last. `unwritten` and
    `partial` are parameters that nobody wrote, wholly or in part; `misread` those written with numbers of another kind,
    and which. `untaken` counts tensors that were offered and not taken. `reason` says why a verdict is unknown.
    """

    role: Role
    verdict: Verdict
    phase: str = "done"
    error: str = ""
    text: str = ""
    tensor: str | None = None
    frames: tuple[str, ...] = ()
    model_class: str | None = None
    modules: tuple[BuiltModule, ...] = ()
    unwritten: tuple[str, ...] = ()
    partial: tuple[str, ...] = ()
    misread: Mapping[str, str] = field(default_factory=dict)
    untaken: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Verification:
    """What an installed engine did with a checkpoint, and where that differs from the prediction.

    `versions` are those of the engine, of Python and of the libraries that decide. `prediction` is that for `compared`,
    the known release nearest to the engine's (None where nothing could be predicted); `exact` is whether it is that
    very release. `differences` are sentences; `replaced` says what of the engine was replaced, and why.
    """

    ref: str
    engine: str
    version: str
    interpreter: str
    versions: Mapping[str, str]
    runner: str
    target: Observation | None
    draft: Observation | None
    prediction: Prediction | None
    compared: str
    exact: bool
    differences: tuple[str, ...]
    replaced: tuple[str, ...]
    notes: tuple[str, ...]
    seconds: float
    memory: int

    @property
    def exit_code(self) -> int:
        """Return 1 if a model failed or is silently wrong, 3 if none could be judged, else 0."""
        verdicts = {model.verdict for model in (self.target, self.draft) if model is not None}
        if verdicts & {Verdict.FAILS, Verdict.SILENT}:
            return EXIT_FINDINGS
        return EXIT_OK if Verdict.LOADS in verdicts else EXIT_NOTHING


# ---------------------------------------------------------------------------------------------- judged


@dataclass(frozen=True, slots=True)
class Operation:
    """One change to a checkpoint: `action` is a verb of the closed set in `fix/`, on a `file`, with a `value`."""

    action: str
    file: str
    value: str


@dataclass(frozen=True, slots=True)
class Fix:
    """A repair: its title, whether it can be applied without asking, its operations, and the bytes it writes."""

    title: str
    safe: bool
    operations: tuple[Operation, ...]
    bytes_written: int


@dataclass(frozen=True, slots=True)
class Ignore:
    """Findings that are known and accepted: `rule` is a code, its beginning or a name, `module` a glob.

    From the day after `until` on it holds no longer.
    """

    rule: str
    reason: str
    module: str = "*"
    until: date | None = None

    def expired(self, today: date) -> bool:
        """Return whether it holds no longer."""
        return self.until is not None and today > self.until


@dataclass(frozen=True, slots=True)
class EngineRange:
    """Releases of one engine, in order, that a finding concerns; `text` is how a person reads it (`vllm <=0.19.1`)."""

    engine: str
    versions: tuple[str, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Finding:
    """One cause, told once: `module` is collapsed (`experts.{0..255}`), `count` is how many modules it stands for."""

    rule: str
    name: str
    severity: Severity
    confidence: Confidence
    module: str
    count: int
    engines: tuple[EngineRange, ...]
    stored: str
    built: str
    message: str
    error: str = ""
    evidence: tuple[str, ...] = ()
    fixes: tuple[Fix, ...] = ()
    role: Role | None = None


@dataclass(frozen=True, slots=True)
class EngineReport:
    """One line of the report: a release (or a run of releases that behave alike) and what it does.

    `verified` are those of `versions` that were run; `prediction` is that of the newest of them, else of the newest.
    """

    prediction: Prediction
    versions: tuple[str, ...]
    range: str
    verified: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MtpSummary:
    """The MTP branch: layers the configuration declares, whether any of its tensors is there, and how many.

    `prefixes` say how the names of its tensors begin on disk.
    """

    declared: int
    present: bool
    tensors: int
    prefixes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a scan of one checkpoint; `ignored` counts findings that were left out as known and accepted.

    `base_model` is the repository that it names as the one it was made from, looked up where a repair needs one.
    """

    checkpoint: Checkpoint
    architecture: str | None
    family: str | None
    mtp: MtpSummary
    stored: Mapping[str, Stored]
    engines: tuple[EngineReport, ...]
    findings: tuple[Finding, ...]
    complete: bool
    notes: Sequence[str] = ()
    ignored: int = 0
    base_model: str = ""

    @property
    def judged(self) -> bool:
        """Whether at least one engine release could be predicted."""
        return any(
            model.verdict is not Verdict.UNKNOWN
            for row in self.engines
            for model in (row.prediction.target, row.prediction.draft)
        )

    def exit_code(self, level: Severity | None = Severity.ERROR) -> int:
        """Return 2 if anything stayed unread, 1 for a finding that reaches `level`, 3 if nothing was judged, else 0."""
        if not self.complete or self.checkpoint.unread:
            return EXIT_UNABLE
        if level is not None and any(finding.severity.reaches(level) for finding in self.findings):
            return EXIT_FINDINGS
        return EXIT_OK if self.judged or not self.checkpoint.headers else EXIT_NOTHING

    def raise_if_failed(self, level: Severity | Literal["error", "warning", "note"] = Severity.ERROR) -> None:
        """Raise FindingsError for a finding that reaches `level`, MtpfixError when anything stayed unread."""
        code = self.exit_code(Severity(level))
        if code == EXIT_UNABLE:
            unread = ", ".join(self.checkpoint.unread[:5]) or "some files"
            raise MtpfixError(f"the scan is incomplete: {unread} could not be read", "repair or download them again")
        if code == EXIT_FINDINGS:
            failing = [finding for finding in self.findings if finding.severity.reaches(Severity(level))]
            first = failing[0]
            more = f" and {len(failing) - 1} more" if len(failing) > 1 else ""
            raise FindingsError(
                f"{self.checkpoint.ref}: {first.rule} {first.name} at {first.module}: {first.message}{more}",
                "run `mtpfix scan` on it to see every finding and its repair",
            )


DIGITS = 9
"""How many digits the number of a layer or an expert may have: Python refuses to read numbers of thousands."""
