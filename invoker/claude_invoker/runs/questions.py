"""What a model asks by `AskUserQuestion`, and what somebody answers. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from claude_contract.rules import QUESTION
from claude_invoker.model import Permission, PermissionAnswer
from claude_invoker.problem import Problem


def questions_of(given: Mapping[str, Any]) -> dict[str, list[str]]:
    """What the model asks by a call of `AskUserQuestion`: each question with the answers that it offers. What cannot
    be understood is left out."""
    found: dict[str, list[str]] = {}
    for question in _objects(given.get("questions")):
        if isinstance(text := question.get("question"), str):
            labels = (option.get("label") for option in _objects(question.get("options")))
            found[text] = [label for label in labels if isinstance(label, str)]
    return found


def _objects(given: Any) -> list[dict[str, Any]]:
    return [each for each in given if isinstance(each, dict)] if isinstance(given, list) else []


def answers_to(asked: Permission, given: PermissionAnswer) -> dict[str, str] | None:
    """Of what was asked, in the CLI's form; None where no question was, or it is not answered. Raises Problem 422."""
    if asked.tool != QUESTION:
        if given.answers is not None:
            raise Problem(422, "invalid", "answers: it is no question")
        return None
    if given.decision == "deny":
        return None
    if given.answers is None or given.input is not None or given.remember != "once":
        raise Problem(422, "invalid", "it is a question: what is allowed has answers, and nothing else")
    questions = questions_of(asked.input)
    for text in (*questions, *given.answers):
        if text not in questions:
            raise Problem(422, "invalid", f"answers: nobody has asked {text[:200]!r}")
        if text not in given.answers:
            raise Problem(422, "invalid", f"answers: there is none to {text[:200]!r}")
    return {text: answer if isinstance(answer, str) else ", ".join(answer) for text, answer in given.answers.items()}
