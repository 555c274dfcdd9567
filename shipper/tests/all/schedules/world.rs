//! The scheduler: what happens to the processes and to every request of theirs, by one seed.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use engine::clock::{Clock, ScriptedClock, SeededEntropy};
use engine::log::{Log, Lsn};
use shipper::ship::ShipConfig;
use shipper::store::ReplicaStore;
use tempfile::TempDir;

use super::net::{Lie, Message, Net};
use super::process::{FOR_EVER, Life, Setup, Stage, at_once, frames, settle};
use crate::common::{group, restore_to, storage};

/// One turn, by the monotonic clock: longer than any pause between two tries, so that their jitter decides nothing. No timer's
/// time divides it, so that none falls between two turns.
const TURN: Duration = Duration::from_millis(6_007);
/// Turns after which everything must have come to rest, once nothing is in the way any more.
const SETTLE_TURNS: u64 = 3_000;
const EPOCH_MICROS: u64 = 1_767_225_600_000_000;
const SECOND: u64 = 1_000_000;

pub struct Dice(SeededEntropy);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(SeededEntropy::new(seed))
    }

    pub fn below(&self, bound: u64) -> u64 {
        self.0.next_u64() % bound.max(1)
    }

    pub fn chance(&self, per_cent: u64) -> bool {
        self.below(100) < per_cent
    }

    fn of<T: Copy>(&self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize]
    }
}

/// A machine: it has one process at a time.
pub struct Machine {
    pub life: Option<Arc<Life>>,
    lives: u32,
    clock: Arc<ScriptedClock>,
    /// How many microseconds its clock goes in a turn.
    rate: u64,
    disk: u32,
    /// Since when no request gets through, if so.
    pub split: Option<u64>,
    /// Up to where its acknowledgements were looked at.
    acked: Lsn,
}

/// How bad a run is.
pub struct Mood {
    turns: u64,
    /// Chance of an event in a turn.
    events: u64,
    /// Chance that a turn's requests all go well.
    pub calm: u64,
    /// Chance of a fault for a request in another turn.
    pub faults: u64,
    /// Chance that a fence or a manifest is long on its way.
    pub ambushes: u64,
    pauses: u64,
    splits: u64,
    crashes: u64,
    successions: u64,
}

pub struct World {
    seed: u64,
    pub dice: Dice,
    pub net: Arc<Net>,
    pub machines: Vec<Machine>,
    pub mood: Mood,
    pub turn: u64,
    groups: u64,
    dir: TempDir,
    trace: Option<Vec<String>>,
}

/// What a run was.
pub struct Outcome {
    pub trace: Vec<String>,
    pub counts: std::collections::BTreeMap<&'static str, u64>,
    pub violations: Vec<String>,
}

/// Runs one seed, on a store that keeps all promises but perhaps one.
pub fn run(seed: u64, traced: bool, lie: Option<Lie>) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let mut world = World::new(seed, traced, lie);
        Box::pin(world.play()).await;
        let mut model = world.net.model.lock();
        Outcome {
            trace: world.trace.take().unwrap_or_default(),
            counts: std::mem::take(&mut model.counts),
            violations: std::mem::take(&mut model.violations),
        }
    })
}

impl World {
    fn new(seed: u64, traced: bool, lie: Option<Lie>) -> World {
        let dice = Dice::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5eed);
        let mood = Mood {
            turns: 60 + dice.below(180),
            events: dice.of(&[15, 30, 50]),
            calm: dice.of(&[30, 60, 90]),
            faults: dice.of(&[0, 10, 30, 60]),
            ambushes: dice.of(&[0, 20, 30, 40]),
            pauses: dice.of(&[0, 4, 12]),
            splits: dice.of(&[0, 3, 8]),
            crashes: dice.of(&[1, 3, 8]),
            successions: dice.of(&[2, 6, 15]),
        };
        let machines = (0..2 + dice.below(2)).map(|_| Machine {
            life: None,
            lives: 0,
            clock: Arc::new(ScriptedClock::at(EPOCH_MICROS + dice.below(600) * SECOND)),
            rate: dice.of(&[5, 6, 6, 7]) * SECOND,
            disk: 0,
            split: None,
            acked: Lsn::ZERO,
        });
        let machines = machines.collect();
        let shm = std::path::Path::new("/dev/shm");
        let dir = match shm.is_dir() {
            true => TempDir::new_in(shm),
            false => TempDir::new(),
        };
        World {
            seed,
            dice,
            net: Arc::new(Net::new(lie)),
            machines,
            mood,
            turn: 0,
            groups: 0,
            dir: dir.expect("a directory"),
            trace: traced.then(Vec::new),
        }
    }

    pub fn note(&mut self, what: impl FnOnce() -> String) {
        let turn = self.turn;
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{turn}: {}", what()));
        }
    }

    pub fn count(&self, what: &'static str) {
        self.net.model.lock().count(what);
    }

    fn is_violated(&self) -> bool {
        !self.net.model.lock().violations.is_empty()
    }

    async fn play(&mut self) {
        self.start(0, false).await;
        while self.turn < self.mood.turns && !self.is_violated() {
            if self.dice.chance(self.mood.events) {
                self.event().await;
            }
            self.network(false);
            self.pass().await;
        }
        if !self.is_violated() {
            self.settle().await;
        }
        for machine in &mut self.machines {
            if let Some(life) = machine.life.take() {
                life.kill().await;
            }
        }
        if !self.is_violated() {
            self.finish().await;
        }
    }

    /// Lets everybody do what they can do without an answer from the store, then looks what they have said.
    async fn pass(&mut self) {
        self.turn += 1;
        self.net.begin_turn(self.turn);
        for machine in &self.machines {
            machine.clock.advance(machine.rate);
        }
        tokio::time::sleep(TURN).await;
        for at in 0..self.machines.len() {
            self.observe(at);
        }
    }

    fn observe(&mut self, at: usize) {
        let Some(life) = self.machines[at].life.clone() else {
            return;
        };
        let (log, handle, claim, ended) = {
            let board = life.board.lock();
            (
                board.log.clone(),
                board.handle.clone(),
                board.claim.clone(),
                board.end.is_some(),
            )
        };
        let (Some(log), Some(handle), Some(claim)) = (log, handle, claim) else {
            return;
        };
        let remote = handle.remote().get();
        let known = self.machines[at].acked.max(claim.before.last_lsn);
        if remote > known {
            let told = frames(&log, known, remote);
            self.net.model.lock().acknowledge(life.who, claim.epoch, &told);
            self.note(|| format!("p{at} acknowledged up to {}", remote.get()));
        }
        self.machines[at].acked = known.max(remote);
        if ended && handle.remote().failed().is_none() {
            let what = format!("p{at} has ended and lets its clients wait");
            self.net.model.lock().violation(what);
        }
    }

    // ---- what happens to processes

    async fn start(&mut self, at: usize, follow: bool) {
        let seed = self.seed ^ (self.dice.below(1 << 32) << 16);
        let setup = self.setup();
        let dir = self.path(at, self.machines[at].disk);
        let machine = &mut self.machines[at];
        machine.lives += 1;
        machine.acked = Lsn::ZERO;
        let life = Life::new(&self.net, (at, machine.lives), &machine.clock, &dir, setup, seed);
        life.spawn(life.clone().run(follow));
        machine.life = Some(life);
        self.count(if follow {
            "starts to follow"
        } else {
            "starts to claim"
        });
        self.note(|| format!("p{at} starts, follow {follow}"));
    }

    fn path(&self, at: usize, disk: u32) -> PathBuf {
        self.dir.path().join(format!("{at}-{disk}"))
    }

    fn setup(&self) -> Setup {
        let dice = &self.dice;
        Setup {
            ship: ShipConfig {
                in_flight: dice.of(&[1, 2, 4, 16]),
                chunk_bytes: dice.of(&[1, 600, 8 << 20]),
                request_timeout: FOR_EVER,
                retry_first: Duration::from_millis(100),
                retry_max: Duration::from_secs(1),
                housekeeping_interval: Duration::from_secs(5),
                temp_dir: self.dir.path().to_owned(),
                // Segments are sealed by appends alone, which are waited for.
                seal_after_chunks: usize::MAX,
                keep_checkpoints: dice.of(&[1, 2]),
                ..ShipConfig::default()
            },
            segment_bytes: dice.of(&[700, 700, 2_500, 64 << 20]),
            lease: dice.chance(25),
        }
    }

    /// Machines of which `is_it` holds, by chance one of them.
    fn some(&self, is_it: impl Fn(&Machine) -> bool) -> Option<usize> {
        let all = (0..self.machines.len()).filter(|at| is_it(&self.machines[*at]));
        let all: Vec<usize> = all.collect();
        (!all.is_empty()).then(|| self.dice.of(&all))
    }

    async fn event(&mut self) {
        // What is long on its way is of interest if much happens meanwhile.
        let held = |message: &Message| message.held_until > self.turn;
        if self.net.pending.lock().iter().any(held) && self.dice.chance(40) {
            return self.append();
        }
        let mood = &self.mood;
        let weights = [
            60,
            mood.pauses,
            mood.splits,
            mood.crashes,
            mood.successions,
            12,
            6,
            4,
            14,
        ];
        let mut roll = self.dice.below(weights.iter().sum());
        let mut what = 0;
        while roll >= weights[what] {
            roll -= weights[what];
            what += 1;
        }
        let runs = |machine: &Machine| machine.life.is_some();
        match what {
            0 => self.append(),
            1 => {
                if let Some(at) = self.some(runs) {
                    self.pause_or_wake(at);
                }
            }
            2 => {
                let at = self.dice.below(self.machines.len() as u64) as usize;
                let split = match self.machines[at].split {
                    Some(_) => None,
                    None => Some(self.turn),
                };
                self.machines[at].split = split;
                self.count(if split.is_some() { "splits" } else { "heals" });
                self.note(|| format!("p{at} split {}", split.is_some()));
            }
            3 => {
                if let Some(at) = self.some(runs) {
                    let lost = self.dice.chance(40);
                    self.crash(at, lost).await;
                }
            }
            4 => self.succession(),
            5 => self.begin_or_end().await,
            6 => {
                let at = self.dice.below(self.machines.len() as u64) as usize;
                self.step_clock(at);
            }
            7 => self.at_writer("checkpoints tried", |life| {
                life.clone().spawn(life.checkpoint());
            }),
            _ => self.at_writer("looks for an asker", |life| {
                life.clone().spawn(life.answer_asker());
            }),
        }
    }

    pub fn writes(machine: &Machine) -> bool {
        machine.life.as_ref().is_some_and(|life| {
            let board = life.board.lock();
            board.stage == Stage::Writing && !board.draining && !life.gate.is_shut()
        })
    }

    fn at_writer(&mut self, what: &'static str, act: impl FnOnce(Arc<Life>)) {
        let Some(at) = self.some(World::writes) else {
            return;
        };
        if let Some(life) = self.machines[at].life.clone() {
            act(life);
            self.count(what);
            self.note(|| format!("p{at}: {what}"));
        }
    }

    fn append(&mut self) {
        let Some(at) = self.some(World::writes) else {
            return;
        };
        let board = self.machines[at]
            .life
            .as_ref()
            .map(|life| life.board.lock().log.clone());
        let Some(Some(log)) = board else { return };
        for _ in 0..1 + self.dice.below(4) {
            self.groups += 1;
            let tag = (self.seed << 20) + self.groups;
            let drafts = group(
                tag,
                1 + self.dice.below(3) as usize,
                self.dice.below(300) as usize,
            );
            match log.append(drafts).map(at_once) {
                Ok(Ok(lsns)) => {
                    let waited = at_once(log.local().wait(lsns.last));
                    waited.expect("the log is well");
                    self.note(|| format!("p{at} appended up to {}", lsns.last.get()));
                }
                other => {
                    let what = format!("p{at} cannot append: {other:?}");
                    self.net.model.lock().violation(what);
                }
            }
        }
        settle(&log);
        self.count("appends");
    }

    fn pause_or_wake(&mut self, at: usize) {
        let Some(life) = self.machines[at].life.clone() else {
            return;
        };
        let (stage, epoch) = {
            let board = life.board.lock();
            (board.stage, board.claim.as_ref().map(|claim| claim.epoch))
        };
        let pause = !life.gate.is_shut();
        life.gate.set(pause);
        self.count(if pause { "pauses" } else { "wakes" });
        if !pause
            && stage == Stage::Writing
            && epoch.is_some_and(|epoch| self.net.model.lock().epoch() > epoch)
        {
            self.count("writers that wake behind a fence");
        }
        self.note(|| format!("p{at} paused {pause}"));
    }

    async fn crash(&mut self, at: usize, disk_lost: bool) {
        let Some(life) = self.machines[at].life.take() else {
            return;
        };
        life.kill().await;
        self.count(if disk_lost {
            "crashes that lose the disk"
        } else {
            "crashes"
        });
        if disk_lost {
            // Whoever looks there still finds it gone.
            let _ = std::fs::remove_dir_all(&life.dir);
            self.machines[at].disk += 1;
        }
        self.note(|| format!("p{at} crashed, disk lost {disk_lost}"));
    }

    /// A follower asks for the reign, or takes it; sometimes two at once.
    fn succession(&mut self) {
        let follows = |machine: &Machine| {
            machine.life.as_ref().is_some_and(|life| {
                let board = life.board.lock();
                board.stage == Stage::Following && !board.ask && !board.take_over
            })
        };
        let both = self.dice.chance(60);
        for _ in 0..=u32::from(both) {
            let Some(at) = self.some(follows) else { return };
            let ask = self.dice.chance(70);
            if let Some(life) = &self.machines[at].life {
                let mut board = life.board.lock();
                (board.ask, board.take_over) = (ask, !ask);
            }
            self.count(if ask { "told to ask" } else { "told to take over" });
            self.note(|| format!("p{at} is to be the writer, ask {ask}"));
        }
    }

    /// What has ended goes, what is not there begins.
    async fn begin_or_end(&mut self) {
        let ended = |machine: &Machine| {
            let life = machine.life.as_ref();
            life.is_some_and(|life| life.board.lock().stage == Stage::Ended && !life.gate.is_shut())
        };
        if let Some(at) = self.some(ended)
            && let Some(life) = self.machines[at].life.take()
        {
            life.kill().await;
            self.note(|| format!("p{at} is gone"));
        }
        if let Some(at) = self.some(|machine| machine.life.is_none()) {
            let rival = |machine: &Machine| {
                let life = machine.life.as_ref();
                life.is_some_and(|life| life.board.lock().stage == Stage::Writing)
            };
            let follow = self.dice.chance(65);
            if !follow && self.machines.iter().any(rival) {
                self.count("starts beside a writer");
            }
            self.start(at, follow).await;
        }
    }

    fn step_clock(&mut self, at: usize) {
        let clock = &self.machines[at].clock;
        let (now, by) = (clock.now_micros(), self.dice.below(5_400) * SECOND);
        let forward = self.dice.chance(50);
        // Within what a log takes for a clock that is merely wrong.
        let (least, most) = (EPOCH_MICROS - 18_000 * SECOND, EPOCH_MICROS + 18_000 * SECOND);
        let then = if forward { now + by } else { now - by };
        clock.set(then.clamp(least, most));
        self.count(if forward { "clocks forward" } else { "clocks back" });
        self.note(|| format!("p{at} clock {then}"));
    }

    // ---- the end

    /// Nothing is in the way any more: everything must come to rest.
    async fn settle(&mut self) {
        self.note(|| "everything is healed".to_owned());
        for machine in &mut self.machines {
            machine.split = None;
            if let Some(life) = &machine.life {
                life.gate.set(false);
            }
        }
        if self.dice.chance(50) {
            self.heir().await;
        }
        let (deadline, mut quiet) = (self.turn + SETTLE_TURNS, 0);
        while quiet < 6 && !self.is_violated() {
            self.network(true);
            self.pass().await;
            quiet = if self.is_quiet() { quiet + 1 } else { 0 };
            if self.turn > deadline {
                let what = format!("nothing comes to rest: {}", self.describe());
                self.net.model.lock().violation(what);
            }
        }
    }

    /// A new machine takes over at the end.
    async fn heir(&mut self) {
        self.machines.push(Machine {
            life: None,
            lives: 0,
            clock: Arc::new(ScriptedClock::at(EPOCH_MICROS)),
            rate: 6 * SECOND,
            disk: 0,
            split: None,
            acked: Lsn::ZERO,
        });
        self.start(self.machines.len() - 1, false).await;
    }

    fn is_quiet(&self) -> bool {
        let last = self.net.model.lock().last();
        self.machines.iter().all(|machine| {
            let Some(life) = &machine.life else { return true };
            let board = life.board.lock();
            let local = board.log.as_ref().map(|log| log.local().get());
            match board.stage {
                Stage::Starting | Stage::Claiming => false,
                Stage::Following => !board.ask && !board.take_over && local == Some(last),
                Stage::Writing => {
                    let remote = board.handle.as_ref().map(|handle| handle.remote().get());
                    local == remote && !board.draining
                }
                Stage::Ended => true,
            }
        })
    }

    fn describe(&self) -> String {
        let all = self.machines.iter().filter_map(|machine| machine.life.as_ref());
        let all = all.map(|life| {
            let board = life.board.lock();
            let at = board.log.as_ref().map(|log| log.local().get());
            format!("{:?} is {:?} at {at:?}", life.who, board.stage)
        });
        all.collect::<Vec<_>>().join(", ")
    }

    /// A restore from what is there has everything, byte for byte.
    async fn finish(&mut self) {
        let has_log = self.net.model.lock().log_id().is_some();
        if !has_log {
            return;
        }
        self.net.model.lock().restorable("at the end", &self.net.store);
        let store: Arc<dyn ReplicaStore> = self.net.store.clone();
        let dest = self.dir.path().join("end");
        let restored = Box::pin(restore_to(&store, &dest)).await;
        let mut model = self.net.model.lock();
        match restored {
            Err(error) => model.violation(format!("the replica cannot be restored: {error:?}")),
            Ok(restored) => {
                if !restored.warnings.is_empty() {
                    model.violation(format!("restored with warnings: {:?}", restored.warnings));
                }
                let log = Log::recover(storage(), &dest.join("log")).expect("what was restored opens");
                let mut tail = log.reader().tail(Lsn::ZERO);
                let mut all = Vec::new();
                loop {
                    let batch = tail.next_batch(Lsn::MAX, 1 << 20).expect("it can be read");
                    if batch.is_empty() {
                        break;
                    }
                    all.extend(batch);
                }
                model.finish(&all);
                model.count("restores at the end");
            }
        }
        if model.acknowledged() > 0 {
            model.count("runs with acknowledgements");
        }
    }
}
