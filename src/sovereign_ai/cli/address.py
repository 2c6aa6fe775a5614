"""How to reach the endpoint: base URL, key and two lines to paste."""

from __future__ import annotations

import json

from sovereign_ai.console import Console

KEY_VARIABLE = "SOVEREIGN_API_KEY"
"""Stands for the key where it cannot be shown: keys are stored as digests only."""


def show(console: Console, url: str, model: str, secret: str | None) -> None:
    """`url` without /v1; `secret` only when the key was created just now."""
    console.say(f"base URL  {url}/v1")
    if secret:
        console.say(f"API key   {secret}   (shown this once; only its digest is stored)")
    else:
        console.say(f"API key   one you have in {KEY_VARIABLE}, or a new one: sovereign keys create NAME")
    console.say()
    console.say(curl_line(url, model, secret))
    console.say(python_line(url, model, secret))


def curl_line(url: str, model: str, secret: str | None) -> str:
    """A shell command; the shell fills in the variable, so that header stands in double quotes."""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello"}]})
    key = secret or f"${KEY_VARIABLE}"
    return (
        f'curl {url}/v1/chat/completions -H "Authorization: Bearer {key}" '
        f"-H 'Content-Type: application/json' -d '{body}'"
    )


def python_line(url: str, model: str, secret: str | None) -> str:
    """A shell command that runs the official `openai` client."""
    key = f'"{secret}"' if secret else f'os.environ["{KEY_VARIABLE}"]'
    return (
        "python -c 'import os, openai; "
        f'client = openai.OpenAI(base_url="{url}/v1", api_key={key}); '
        f'answer = client.chat.completions.create(model="{model}", '
        'messages=[{"role": "user", "content": "Hello"}]); '
        "print(answer.choices[0].message.content)'"
    )
