"""Ask an installed engine about checkpoints, and say of one what it did and where the prediction differs."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from mtpfix.checkpoint import open_checkpoint
from mtpfix.checkpoint.ref import shown
from mtpfix.engines import Engine
from mtpfix.engines.predict import predict
from mtpfix.engines.subject import Subject
from mtpfix.errors import MtpfixError
from mtpfix.facts import covers
from mtpfix.model import ROLES, Checkpoint, Observation, Prediction, Role, Verdict, Verification
from mtpfix.probe.answer import observation
from mtpfix.probe.compare import by_path, differences
from mtpfix.probe.interpreter import choose, inspect, probe_of
from mtpfix.probe.launch import Outcome, run
from mtpfix.probe.stage import Stage, set_up


def ask(
    python: Path,
    module: str,
    checkpoints: Sequence[Path],
    *,
    runner: str | None = None,
    timeout: float = 3600.0,
    hollow: int | None = None,
    ranks: int = 1,
    source: Path | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield what a module of the probe wrote of each checkpoint; `hollow`, `ranks`, `source` as its options."""
    with tempfile.TemporaryDirectory(prefix="mtpfix-") as place:
        stages = []
        for number, checkpoint in enumerate(checkpoints):
            folder = Path(place) / str(number) / checkpoint.name
            folder.mkdir(parents=True)
            stages.append(set_up(checkpoint, folder))
        arguments = [*(str(stage.folder) for stage in stages)]
        arguments += [option for stage in stages for option in _told(stage)]
        arguments += [f"--runner={runner}"] if runner else []
        arguments += [f"--hollow={hollow}"] if hollow is not None else []
        arguments += [f"--ranks={ranks}"] if ranks > 1 else []
        arguments += [f"--source={source.resolve()}"] if source is not None else []
        outcome = run(python, module, arguments, timeout=timeout)
    _refuse_broken(outcome, str(python))
    found = {line["checkpoint"]: line for line in outcome.answers if "started" not in line}
    for stage in stages:
        yield found.get(str(stage.folder), {"broken": f"the probe ended with {outcome.code}: {outcome.printed}"})


def _told(stage: Stage) -> list[str]:
    """Return the options that tell a probe of one checkpoint what it does not know itself."""
    foreign = [f"--foreign={stage.folder}"] if stage.foreign else []
    main = [f"--main={stage.folder}={stage.main}"] if stage.main is not None else []
    options = [f"--options={stage.folder}={json.dumps(stage.options)}"] if stage.options else []
    return [*foreign, *main, *options, f"--layers={stage.folder}={stage.layers}"]


def observe(
    ref: str | os.PathLike[str],
    engine_python: str | os.PathLike[str],
    *,
    engine: str | None = None,
    roles: Sequence[Role] = ROLES,
    timeout: float,
    memory: int | None,
) -> Verification:
    """Ask the engine that an interpreter has about the checkpoint in a folder; see `mtpfix.verify`."""
    interpreter = inspect(engine_python)
    chosen = choose(interpreter, engine)
    module = probe_of(chosen)
    checkpoint = open_checkpoint(ref)
    subject = Subject(checkpoint)
    if checkpoint.root is None:
        raise MtpfixError(f"{shown(checkpoint.ref)} is not a folder on this machine", "download it first")
    notes = []
    if "draft" in roles and subject.family is not None and subject.numbers is not None and _has_no_branch(subject):
        roles = [role for role in roles if role != "draft"]
        notes.append("no MTP layer is declared, so no draft was asked for")
    with tempfile.TemporaryDirectory(prefix="mtpfix-") as place:
        folder = Path(place) / checkpoint.root.resolve().name
        folder.mkdir()
        stage = set_up(checkpoint.root, folder)
        if stage.left_out:
            notes.append(f"files with code were not shown to the engine: {', '.join(map(shown, stage.left_out[:5]))}")
        if stage.main is not None and "draft" in roles:
            notes.append("this checkpoint is a draft alone: a small main model, without weights, stood beside it")
        started = stage.options.get(chosen.name, {})
        if started and covers(started.get("versions", "*"), str(interpreter.engines[chosen.name])):
            told = (f"{key}={value}" for key, value in started.items() if key != "versions")
            notes.append(f"the engine was started with {', '.join(told)}, which it needs for this model")
        arguments = [str(folder), f"--roles={','.join(roles)}", "--limit=0"]
        arguments += _told(stage)
        outcome = run(interpreter.path, module, arguments, timeout=timeout, memory=memory)
    _refuse_broken(outcome, str(interpreter.path))
    found = next((line for line in outcome.answers if "started" not in line), None)
    if found is None or "broken" in found:
        raise _unanswered(found, outcome, chosen)
    version = str(found.get(chosen.name) or interpreter.engines[chosen.name] or "")
    stand_ins = tuple(map(str, found.get("stand_ins", ())))
    if "unsupported" in found:
        models = _unsupported(chosen, version, roles, found)
    else:
        models = {
            role: observation(role, found[role], stand_ins, str(folder), str(checkpoint.root))
            if found.get(role)
            else None
            for role in ROLES
        }
    compared, prediction = _predicted(checkpoint, subject, chosen, version)
    return Verification(
        ref=checkpoint.ref,
        engine=chosen.name,
        version=version,
        interpreter=str(interpreter.path),
        versions={
            chosen.name: version,
            "python": interpreter.version,
            **{name: str(found[name]) for name in ("torch", "transformers") if name in found},
        },
        runner=str(found.get("runner", "")),
        target=models["target"],
        draft=models["draft"],
        prediction=prediction,
        compared=compared,
        exact=compared == version,
        differences=tuple(_differences(prediction, models, chosen)),
        replaced=tuple(map(str, found.get("patches", ()))),
        notes=tuple(notes),
        seconds=float(found.get("seconds", 0.0)),
        memory=outcome.memory,
    )


def nearest(engine: Engine, version: str) -> str:
    """Return the known release that is nearest to a version: the newest that is not newer, else the oldest."""
    try:
        wanted = Version(version)
    except InvalidVersion:
        return engine.releases[-1]
    return next((known for known in reversed(engine.releases) if Version(known) <= wanted), engine.releases[0])


def _has_no_branch(subject: Subject) -> bool:
    numbers = subject.numbers
    return numbers is not None and (numbers.mtp == 0 or (not numbers.declared and not subject.mtp.present))


def _predicted(checkpoint: Checkpoint, subject: Subject, engine: Engine, version: str) -> tuple[str, Prediction | None]:
    compared = nearest(engine, version)
    if checkpoint.unread:
        return compared, None
    return compared, predict(subject, engine, compared)


def _differences(
    prediction: Prediction | None, models: dict[Role, Observation | None], engine: Engine
) -> Iterator[str]:
    if prediction is None:
        return
    for predicted in (prediction.target, prediction.draft):
        observed = models[predicted.role]
        if observed is None or Verdict.UNKNOWN in (observed.verdict, predicted.verdict):
            continue
        name = "main model" if predicted.role == "target" else "MTP draft"
        yield from (f"{name}: {sentence}" for sentence in differences(predicted, observed, by_path=by_path(engine)))


def _unsupported(
    engine: Engine, version: str, roles: Sequence[Role], found: dict[str, Any]
) -> dict[Role, Observation | None]:
    names = ", ".join(shown(str(name)) for name in found["unsupported"]) or "no architecture"
    reason = f"{engine.title} {version} has no class for {names}"
    return {role: Observation(role, Verdict.UNKNOWN, reason=reason) if role in roles else None for role in ROLES}


def _refuse_broken(outcome: Outcome, python: str) -> None:
    """Raise MtpfixError where the engine could not even be imported."""
    said = next((line["broken_engine"] for line in outcome.answers if "broken_engine" in line), None)
    if said is not None:
        raise MtpfixError(
            f"the engine that {shown(python)} has cannot be imported: {shown(str(said))}",
            "repair or reinstall it; the same happens without mtpfix",
        )


def _unanswered(found: dict[str, Any] | None, outcome: Outcome, engine: Engine) -> MtpfixError:
    """Return the error of a probe that ended without an answer."""
    if found is not None:
        last = str(found["broken"]).strip().splitlines()[-1:]
        return MtpfixError(
            f"the probe could not ask {engine.title}: {shown(' '.join(last))}",
            "this is a defect of mtpfix, or a release it was not written for; run it again with MTPFIX_DEBUG=1",
        )
    how = f"was ended by signal {-outcome.code}" if outcome.code < 0 else f"ended with code {outcome.code}"
    said = f"; it last printed: {shown(outcome.printed)}" if outcome.printed else ""
    return MtpfixError(
        f"the engine's process {how} without an answer{said}",
        "it may have run out of memory; close other programs, or report it with that text",
    )
