#!/bin/sh
# Fills build/image/wheels: this package, and what image/requirements.lock pins, from the index that pip is set to here.
# The build of the image itself then needs no network, so it also works where the wheels were carried in.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
wheels=build/image/wheels
rm -rf "$wheels"
mkdir -p "$wheels"
# no sources: there is no compiler in the image, and a build would run code that nobody pinned
"$python" -m pip download -q --no-deps --only-binary :all: --python-version 3.11 -d "$wheels" -r image/requirements.lock
"$python" -m pip wheel -q --no-deps -w "$wheels" .
