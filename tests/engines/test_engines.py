"""Which releases a request means, and how a set of releases is written."""

from __future__ import annotations

import pytest
from packaging.version import Version

from mtpfix.engines import load, names, range_text, resolve_requests
from mtpfix.errors import UsageError

VLLM = load("vllm")


def releases_of(*texts: str) -> tuple[str, ...]:
    (request,) = resolve_requests(texts)
    return request.releases


@pytest.mark.parametrize("texts", [None, (), ("vllm",), ("VLLM",), (" vllm ",)])
def test_without_a_version_every_known_release_is_meant(texts: tuple[str, ...] | None) -> None:
    request = next(one for one in resolve_requests(texts) if one.engine is VLLM)
    assert request.releases == VLLM.releases
    assert not request.explicit


def test_nothing_asks_for_every_known_engine() -> None:
    assert [request.engine.name for request in resolve_requests(None)] == list(names())


def test_releases_ascend_as_versions_not_as_text() -> None:
    assert list(VLLM.releases) == sorted(VLLM.releases, key=Version)
    assert len(set(VLLM.releases)) == len(VLLM.releases)
    assert set(VLLM.verified) <= set(VLLM.releases)


@pytest.mark.parametrize(
    ("text", "belongs"),
    [
        ("vllm==0.19.*", lambda version: version.release[:2] == (0, 19)),
        ("vllm==0.32.0", lambda version: version == Version("0.32.0")),
        ("vllm>=0.20,<0.24", lambda version: Version("0.20") <= version < Version("0.24")),
        ("vllm <0.20", lambda version: version < Version("0.20")),
        ("vllm!=0.32.0", lambda version: version != Version("0.32.0")),
    ],
)
def test_a_range_means_the_known_releases_inside_it(text: str, belongs: object) -> None:
    assert callable(belongs)
    (request,) = resolve_requests([text])
    expected = tuple(one for one in VLLM.releases if belongs(Version(one)))
    assert request.releases == expected
    assert expected
    assert request.explicit


def test_several_requests_of_one_engine_are_one_request_without_repeats() -> None:
    assert releases_of("vllm==0.32.0", "vllm==0.19.*", "vllm==0.19.1") == (*releases_of("vllm==0.19.*"), "0.32.0")
    (request,) = resolve_requests(["vllm", "vllm==0.19.1"])
    assert request.releases == VLLM.releases
    assert request.explicit


@pytest.mark.parametrize(
    ("text", "told", "hint"),
    [
        ("llama-cpp", "llama-cpp", "vllm"),
        ("vllm==9.9", "vllm==9.9", VLLM.releases[-1]),
        ("vllm>=0.20,<0.20", "vllm>=0.20,<0.20", VLLM.releases[0]),
        ("vllm 0.19", "vllm 0.19", "vllm==0.19.*"),
        ("vllm==", "vllm==", "vllm==0.19.*"),
        ("==0.19", "==0.19", "vllm==0.19.*"),
        ("", "''", "vllm==0.19.*"),
        ("../vllm", "../vllm", "vllm==0.19.*"),
    ],
)
def test_a_request_that_means_nothing_is_refused_with_a_next_step(text: str, told: str, hint: str) -> None:
    with pytest.raises(UsageError) as raised:
        resolve_requests([text])
    assert told in raised.value.message
    assert hint in raised.value.hint


def test_one_bad_request_refuses_all() -> None:
    with pytest.raises(UsageError):
        resolve_requests(["vllm", "vllm==9.9"])


def test_a_text_for_releases_says_no_more_than_they_are() -> None:
    known = VLLM.releases
    assert range_text(VLLM, known) == "vllm"
    assert range_text(VLLM, reversed(known)) == "vllm"
    assert range_text(VLLM, known[:4]) == f"vllm <={known[3]}"
    assert range_text(VLLM, known[-3:]) == f"vllm >={known[-3]}"
    assert range_text(VLLM, known[3:6]) == f"vllm {known[3]} - {known[5]}"
    assert range_text(VLLM, [known[3]]) == f"vllm {known[3]}"
    assert range_text(VLLM, [known[0]]) == f"vllm {known[0]}"
    assert range_text(VLLM, [known[-1]]) == f"vllm {known[-1]}"
    assert range_text(VLLM, [known[2], known[4]]) == f"vllm {known[2]}, {known[4]}"
    assert range_text(VLLM, [*known[:2], known[4], *known[-2:]]) == f"vllm <={known[1]}, {known[4]}, >={known[-2]}"
    assert range_text(VLLM, []) == "vllm"


@pytest.mark.parametrize("text", ["tensorrt-llm", "tensorrt_llm==1.2.0", "trtllm"])
def test_an_engine_that_could_not_be_read_is_refused_by_its_name(text: str) -> None:
    with pytest.raises(UsageError, match="TensorRT-LLM is not predicted") as raised:
        resolve_requests([text])
    assert "predicted are sglang, vllm" in raised.value.hint
