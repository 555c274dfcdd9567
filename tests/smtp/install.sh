#!/usr/bin/env bash
# Installs the mail server of the tests into target/smtp-server, unless it is there.
set -euo pipefail
cd "$(dirname "$0")/../.."
pins=tests/smtp/requirements.txt
if cmp -s "$pins" target/smtp-server/.installed-from; then exit 0; fi
rm -rf target/smtp-server
python3 -m venv target/smtp-server
target/smtp-server/bin/pip install --quiet --disable-pip-version-check --no-cache-dir -r "$pins"
cp "$pins" target/smtp-server/.installed-from
