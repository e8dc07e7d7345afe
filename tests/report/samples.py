"""Reports made by hand, so that showing them is tested apart from judging."""

from __future__ import annotations

from dataclasses import replace

from mtpfix.model import (
    Built,
    Checkpoint,
    Confidence,
    Declaration,
    Dialect,
    EngineRange,
    EngineReport,
    Event,
    Finding,
    Fix,
    Format,
    ModelPrediction,
    MtpSummary,
    Operation,
    Outcome,
    Part,
    Prediction,
    Report,
    Role,
    Severity,
    Shard,
    Stored,
    Verdict,
)

ATTENTION = tuple(f"mtp.layers.0.self_attn.{side}_proj" for side in "qkvo")
EXPERTS = tuple(f"mtp.layers.0.mlp.experts.{{}}.{side}_proj" for side in ("gate", "up", "down"))
SOURCE = "model_executor/models/qwen3_5_mtp.py:98@0.19.1"
BLOCK = Declaration(
    file="config.json",
    path=("quantization_config",),
    method="modelopt",
    dialect="flat",
    algo="NVFP4",
    scheme=None,
    exclude_key="ignore",
    excludes=("mtp.layers.0*",),
)


def stored(module: str, form: Format = Format.BF16) -> Stored:
    """Return a stored module of a plausible shape."""
    experts = frozenset(range(512)) if "{}" in module else None
    part = Part("weight", "BF16", (1024, 4096), ("model-00001-of-00002.safetensors", f"{module}.weight"), experts)
    return Stored(module, form, Dialect.MODELOPT, (1024, 4096), {"weight": part}, experts, bytes=8_388_608)


def built(module: str, form: Format) -> Built:
    """Return a module built under the name it has on disk."""
    return Built((module,), module, "column", form, (SOURCE,))


def event(module: str, outcome: Outcome, error: str = "", text: str = "") -> Event:
    """Return something that happens to a module."""
    return Event("plain-into-quantized", outcome, module, f"{module}.weight", error, text, (SOURCE,), (1, "", module))


def model(
    role: Role,
    verdict: Verdict = Verdict.LOADS,
    *,
    formats: tuple[Built, ...] = (),
    events: tuple[Event, ...] = (),
    error: str | None = None,
) -> ModelPrediction:
    """Return the prediction for one model."""
    return ModelPrediction(role, verdict, error, "mtp.fc.weight" if error else None, formats, events)


def engine(
    versions: tuple[str, ...],
    text: str,
    draft: ModelPrediction,
    target: ModelPrediction | None = None,
    confidence: Confidence = Confidence.VERIFIED,
    name: str = "vllm",
) -> EngineReport:
    """Return a line of the report; the last version is the one worked out."""
    target = target or model("target")
    prediction = Prediction(name, versions[-1], confidence, target, draft, "modelopt_fp4", BLOCK)
    return EngineReport(prediction, versions, text)


def clean() -> Report:
    """Return the report of a checkpoint that loads wherever it was asked about."""
    modules = ("mtp.fc", *ATTENTION, *EXPERTS)
    draft = model("draft", formats=tuple(built(module, Format.BF16) for module in modules))
    shards = tuple(
        Shard(f"model-{n:05d}-of-00002.safetensors", 5_000_000_000, 4096, 1500, indexed=True) for n in (1, 2)
    )
    checkpoint = Checkpoint(
        ref="Qwen3.5-397B-A17B-NVFP4",
        root=None,
        revision=None,
        config={},
        declarations=(BLOCK,),
        shards=shards,
        tensors=(),
        problems=(),
        unread=(),
        has_index=True,
    )
    return Report(
        checkpoint=checkpoint,
        architecture="Qwen3_5MoeForConditionalGeneration",
        family="qwen3_5",
        mtp=MtpSummary(1, present=True, tensors=1553, prefixes=("mtp.",)),
        stored={module: stored(module) for module in (*modules, "lm_head")},
        engines=(engine(("0.20.2", "0.21.0", "0.33.0"), "vllm >=0.20.2", draft),),
        findings=(),
        complete=True,
    )


def finding(severity: Severity = Severity.ERROR, module: str = "mtp.fc") -> Finding:
    """Return a finding with everything a finding can have."""
    repair = Fix(
        title='add "mtp.fc" to `ignore` in config.json and to `exclude_modules` in hf_quant_config.json',
        safe=True,
        operations=(Operation("add-exclude", "config.json", "mtp.fc"),),
        bytes_written=9321,
    )
    return Finding(
        rule="MTP101",
        name="plain-where-packed",
        severity=severity,
        confidence=Confidence.VERIFIED,
        module=module,
        count=1,
        engines=(EngineRange("vllm", ("0.18.1", "0.19.1"), "vllm <=0.19.1"),),
        stored="bf16",
        built="nvfp4",
        message="The MTP branch stores this module in bf16, but the engine builds it in nvfp4.",
        error="AssertionError",
        evidence=(SOURCE,),
        fixes=(repair,),
        role="draft",
    )


def failing() -> Report:
    """Return the report of a checkpoint whose draft fails in old releases and is silently wrong in one between."""
    report = clean()
    packed = tuple(
        built(name, Format.NVFP4 if name == "mtp.fc" else Format.BF16) for name in ("mtp.fc", *ATTENTION, *EXPERTS)
    )
    old = model(
        "draft",
        Verdict.FAILS,
        formats=packed,
        events=(event("mtp.fc", Outcome.CRASH, "AssertionError"),),
        error="AssertionError",
    )
    between = model("draft", Verdict.SILENT, formats=packed, events=(event("mtp.fc", Outcome.SILENT),))
    engines = (
        engine(("0.18.1", "0.19.1"), "vllm <=0.19.1", old),
        engine(("0.20.2",), "vllm 0.20.2", between, confidence=Confidence.DERIVED),
        engine(("0.21.0", "0.33.0"), "vllm >=0.21.0", report.engines[0].prediction.draft),
    )
    return replace(report, engines=engines, findings=(finding(), finding(Severity.NOTE, "lm_head")))
