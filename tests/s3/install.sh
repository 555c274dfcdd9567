#!/usr/bin/env bash
# Installs the service that speaks S3 to the tests into target/s3-server, unless it is there.
set -euo pipefail
cd "$(dirname "$0")/../.."
pins=tests/s3/requirements.txt
if cmp -s "$pins" target/s3-server/.installed-from; then exit 0; fi
rm -rf target/s3-server
python3 -m venv target/s3-server
target/s3-server/bin/pip install --quiet --disable-pip-version-check --no-cache-dir -r "$pins"
cp "$pins" target/s3-server/.installed-from
