#!/bin/sh
# A PDS on http://localhost:2583, with everything that it needs embedded: no network, no accounts anywhere else.
# Prints a first account and a curl line that posts. Data is kept in ./data; arguments go to `pds dev` (--help lists them).
set -eu
cd "$(dirname "$0")/.."
# shellcheck source=deploy/needs.sh
. deploy/needs.sh
need_build_tools
exec cargo run --profile quick --bin pds -- dev "$@"
