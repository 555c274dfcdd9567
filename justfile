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

# One seed of the engine's simulation, step by step.
sim seed:
    PDS_SIM_SEED={{seed}} cargo test --profile profiling -p engine --lib sim::whatever -- --nocapture

# Many seeds: of the engine and of the log alone. Say where to begin to run others than the last time.
sims count="10000" from="0":
    PDS_SIM_SEEDS={{count}} PDS_SIM_FROM={{from}} cargo test --profile profiling -p engine --lib sim:: -- --nocapture

# One seed of the simulation of several processes on one replica, request by request.
schedule seed:
    SCHEDULE_SEED={{seed}} cargo test --profile profiling -p shipper --test all -- schedules::no_schedule --nocapture

# Many seeds of it.
schedules count="10000" from="0":
    SCHEDULE_SEEDS={{count}} SCHEDULE_FROM={{from}} cargo test --profile profiling -p shipper --test all -- schedules:: --nocapture

# Fuzzing of one decoder (`ls tests/fuzz/targets`) for some seconds; needs `cargo install cargo-fuzz`. The instrumentation is
# unstable in name only, so the ordinary toolchain is told to allow it. Without `--sanitizer none` it also needs a sanitizer.
fuzz target seconds="60":
    cd tests/fuzz && RUSTC_BOOTSTRAP=1 cargo fuzz run --fuzz-dir . --sanitizer none {{target}} -- -max_total_time={{seconds}} -rss_limit_mb=2048 -timeout=10

# Micro-benchmarks.
bench *arguments:
    cargo bench -p benches "$@"

# The container image.
image tag="azure-pds":
    docker build -f deploy/Dockerfile -t {{tag}} .
