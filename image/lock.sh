#!/bin/sh
# Resolves the control plane's packages anew and writes image/requirements.lock. Run it with Python 3.11 (PYTHON=...).
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "the image has Python 3.11: resolve with that")'
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m venv "$work/venv"  # empty: what this machine has installed must not shorten the list
"$work/venv/bin/python" -m pip install -q --dry-run --ignore-installed --report "$work/report.json" \
    '.[kubernetes,tracing]'
"$python" - "$work/report.json" > "$work/requirements.lock" <<'END'
import json, re, sys
print("# Every package of the control plane's image: sovereign-ai[kubernetes,tracing] resolved for Python 3.11 on Linux.")
print("# Made by image/lock.sh. pip is only here to install the rest: the image has none.")
found = [one["metadata"] for one in json.load(open(sys.argv[1]))["install"]]
for name, version in sorted((re.sub(r"[-_.]+", "-", one["name"]).lower(), one["version"]) for one in found):
    if name != "sovereign-ai":
        print(f"{name}=={version}")
END
mv "$work/requirements.lock" image/requirements.lock
