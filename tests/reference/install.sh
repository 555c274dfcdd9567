#!/usr/bin/env bash
# Installs the reference server, which tests run beside this one, into tests/reference/node_modules, unless it is there.
# Nothing of it is compiled, and no package runs a script.
set -euo pipefail
cd "$(dirname "$0")"
if cmp -s package-lock.json node_modules/.installed-from; then exit 0; fi
npm ci --ignore-scripts --loglevel=error
cp package-lock.json node_modules/.installed-from
