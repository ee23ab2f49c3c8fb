from __future__ import annotations

from builder.requirements import PROJECT, pinned


def test_setup_installs_the_dependencies_and_dev_but_no_peer() -> None:
    names = [requirement.split("==")[0] for requirement in pinned(PROJECT.read_text())]
    assert {"torch", "pydantic", "pytest"} <= set(names)
    assert not {"openvino", "locust"} & set(names)


def test_an_extra_by_name() -> None:
    names = [requirement.split("==")[0] for requirement in pinned(PROJECT.read_text(), ("peers",))]
    assert {"openvino", "onnxruntime", "ctranslate2"} <= set(names)
    assert "torch" not in names
