"""What docs/requests.md shows is what the handler takes."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from handler.config import Limits, SetupConfig
from handler.decode import Decoder
from handler.errors import STATUS
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
    for task, options in re.findall(r"^\| (\w+) \| `\{.*\| (.*) \|$", PAGE, re.MULTILINE):
        assert set(re.findall(r"`(\w+)`", options)) <= set(TASKS[task].request.model_fields)


def test_python_lines_parse_and_config_keys_exist() -> None:
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        ast.parse(block)
    assert {"limits", "null_answer", "captum_explanation"} <= set(SetupConfig.model_fields)
