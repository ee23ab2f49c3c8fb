"""What docs/requests.md shows is what the handler takes."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from handler.client import Client
from handler.config import Explanations, Limits, SetupConfig
from handler.decode import Decoder
from handler.errors import STATUS
from handler.predictor import Predictor
from handler.schemas import ErrorAnswer, Request
from handler.tasks import TASKS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "requests.md").read_text()
EXAMPLES = re.findall(r"```json (\w+)\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize(("task", "body"), EXAMPLES, ids=[task for task, _ in EXAMPLES])
def test_examples_are_valid(task: str, body: str) -> None:
    if task == "error":
        assert ErrorAnswer.model_validate_json(body).error.type in STATUS
        return
    items = Decoder(TASKS[task].request, Limits()).decode({"body": body.encode()}).items
    assert items
    assert all(isinstance(item, Request) for item in items)


def test_every_task_has_an_example() -> None:
    assert set(TASKS) <= {task for task, _ in EXAMPLES}


def test_the_table_of_errors_is_the_codes_own() -> None:
    assert {name: int(code) for name, code in re.findall(r"^\| (\w+) \| (\d{3}) \|", PAGE, re.MULTILINE)} == STATUS


def test_the_table_of_tasks_names_real_options() -> None:
    rows = dict(re.findall(r"^\| (\w+) \| `\{.*\| (.*) \|$", PAGE, re.MULTILINE))
    assert set(rows) == set(TASKS)
    for task, options in rows.items():
        named = set(re.findall(r"`(\w+)`", options))
        assert named
        assert named <= set(TASKS[task].request.model_fields)


def test_python_lines_call_what_exists() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    calls = [node for block in blocks for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call)]
    methods = [
        (call.func.value.id, call.func.attr)
        for call in calls
        if isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name)
    ]
    assert {owner for owner, _ in methods} == {"client", "Predictor"}
    for owner, method in methods:
        assert hasattr({"client": Client, "Predictor": Predictor}[owner], method)


def test_the_config_keys_named_exist() -> None:
    keys = re.findall(r"config's\s+`(\w+)`", PAGE) + re.findall(r'`"(\w+)": true`', PAGE)
    assert {"explanations", "captum_explanation", "null_answer"} <= set(keys) <= set(SetupConfig.model_fields)
    groups = {"limits": Limits, "explanations": Explanations}
    dotted = re.findall(r"`(limits|explanations)\.(\w+)`", PAGE)
    assert dotted
    for group, key in dotted:
        assert key in groups[group].model_fields


def test_the_bounds_of_explanations_are_the_defaults() -> None:
    section = PAGE[PAGE.index("## Explanations") : PAGE.index("## From Python")]
    figures = {key: int(value) for key, value in re.findall(r"`(\w+)`\s+\((\d+)\)", section)}
    assert figures == Explanations().model_dump()


@pytest.mark.parametrize("task", TASKS)
def test_what_errors_say_to_send_is_taken(task: str) -> None:
    schema = TASKS[task].request
    for example in schema.taken.split(" or "):
        assert isinstance(Decoder(schema, Limits()).element(json.loads(example)), schema)
