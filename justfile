# Short names for what is done often. `just` lists them.

set positional-arguments

default:
    @just --list

# A PDS on http://localhost:2583 with everything embedded.
dev *arguments:
    deploy/dev.sh "$@"

# Types, lints and format, without running anything.
check:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings

# Everything that CI runs.
ci:
    .ci/run

# All tests; arguments select by name.
test *names:
    tests/run.sh "$@"

# The official libraries against a real server.
e2e:
    tests/run.sh e2e

# Loss drills on the Azure emulator: how many, and the first one's seed.
drill count="50" seed="1":
    PDS_DRILLS={{count}} PDS_DRILL_SEED={{seed}} tests/run.sh drill

# The crash simulation of the log; a failing seed replays with PDS_SIM_SEED=<seed>.
sim count="10000":
    PDS_SIM_SEEDS={{count}} cargo test --release -p engine --lib log::sim -- --nocapture

# Micro-benchmarks.
bench *arguments:
    cargo bench -p benches "$@"

# The container image.
image tag="azure-pds":
    docker build -f deploy/Dockerfile -t {{tag}} .
