#!/usr/bin/env bash
# Sets up what the tests need, builds, runs every test of the workspace, and says what was skipped and why.
# Arguments go to the tests: `tests/run.sh drill` runs those with "drill" in their names.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=deploy/needs.sh
. deploy/needs.sh
need_build_tools

# Node runs the emulator of Azure Blob Storage and the official client libraries. Any Node with npm can fetch the one
# that the packages pin, which is then used.
node_ready() { command -v node >/dev/null && command -v npm >/dev/null; }
if ! node_ready; then install_packages nodejs npm || true; fi
command -v curl >/dev/null || install_packages curl || true
if node_ready; then
    lock=tests/node/package-lock.json
    if ! cmp -s "$lock" tests/node/node_modules/.installed-from; then
        (cd tests/node && npm ci --ignore-scripts --loglevel=error)
        cp "$lock" tests/node/node_modules/.installed-from
    fi
    for packaged in "$PWD"/tests/node/node_modules/node-linux-*/bin; do
        if [ -x "$packaged/node" ] && "$packaged/node" --version >/dev/null 2>&1; then
            export PATH="$packaged:$PATH"
        fi
    done
    echo "Node $(node --version)"
    # The reference server, which some tests run beside this one.
    tests/reference/install.sh || echo "the reference server cannot be installed: what needs it is skipped"
else
    echo "no Node: what needs it is skipped"
fi

# Python runs the service that speaks S3, and the mail server.
if ! python3 -c 'import ensurepip' 2>/dev/null; then install_packages python3 python3-venv || true; fi
if python3 -c 'import ensurepip' 2>/dev/null; then
    tests/s3/install.sh
    tests/smtp/install.sh
else
    echo "no Python: what needs it is skipped"
fi

# Servers count in it what clients ask.
command -v redis-server >/dev/null || install_packages redis-server || echo "no Redis: what needs it is skipped"

cargo build --bin pds --bin pds-tools
# A failure's message tells more than the frames below it.
export RUST_BACKTRACE=0 RUST_LIB_BACKTRACE=0
output=$(mktemp)
trap 'rm -f "$output"' EXIT
status=0
cargo test --workspace --no-fail-fast -- --show-output "$@" 2>&1 | tee "$output" || status=$?

echo
grep -h '^ *skipped: ' "$output" | sort | uniq -c | sed 's/^ */skipped tests: /' || echo "nothing was skipped"
awk '/^test result:/ { passed += $4; failed += $6; ignored += $8 }
     END { printf "%d passed, %d failed, %d skipped\n", passed, failed, ignored }' "$output"
exit "$status"
