//! What becomes of the requests that are on their way.

use super::net::{Answer, Ask, Message, brief, lost, refused};
use super::process::Stage;
use super::world::World;

impl World {
    /// One turn of the network. `healed`: everything goes well.
    pub fn network(&mut self, healed: bool) {
        let mut pending = std::mem::take(&mut *self.net.pending.lock());
        pending.sort_by(|a, b| a.order().cmp(&b.order()));
        self.ambush(&mut pending);
        if healed {
            pending.iter_mut().for_each(|message| message.held_until = 0);
        }
        if healed || self.dice.chance(self.mood.calm) {
            self.calm(&mut pending);
        } else {
            self.rough(&mut pending);
        }
        self.orphans(&mut pending, healed);
        self.net.pending.lock().append(&mut pending);
    }

    /// Some requests on which much depends stay on their way for long, while everybody else goes on: the fence of a claimant beside a
    /// writer, and a manifest.
    fn ambush(&mut self, pending: &mut [Message]) {
        for message in pending.iter_mut().filter(|message| message.sent == self.turn) {
            let Ask::Create(name, _) = &message.ask else {
                continue;
            };
            let claims = matches!(self.stage(message.who), Some(Stage::Starting | Stage::Claiming));
            let is_fence =
                claims && name.as_str().starts_with("wal/") && self.machines.iter().any(World::writes);
            let is_manifest = name.as_str().starts_with("manifest/");
            let chance = match is_fence {
                true => self.mood.ambushes * 4,
                false => self.mood.ambushes,
            };
            if (is_fence || is_manifest) && self.dice.chance(chance) {
                message.held_until = self.turn + 10 + self.dice.below(70);
                self.count(if is_fence {
                    "fences long on their way"
                } else {
                    "manifests long on their way"
                });
            }
        }
    }

    fn is_paused(&self, who: (usize, u32)) -> bool {
        let life = self.machines.get(who.0).and_then(|machine| machine.life.as_ref());
        life.is_some_and(|life| life.who == who && life.gate.is_shut())
    }

    fn stage(&self, who: (usize, u32)) -> Option<Stage> {
        let life = self.machines.get(who.0)?.life.as_ref()?;
        (life.who == who).then(|| life.board.lock().stage)
    }

    /// Each process's next request is carried out and answered; of one that only reads, all of them.
    fn calm(&mut self, pending: &mut Vec<Message>) {
        let mut served = Vec::new();
        let mut at = 0;
        while at < pending.len() {
            let who = pending[at].who;
            let stage = self.stage(who);
            let all = matches!(stage, Some(Stage::Starting | Stage::Claiming)) && !pending[at].ask.changes();
            let turn_is_over = served.contains(&who) && !all;
            if pending[at].is_orphan()
                || pending[at].held_until > self.turn
                || turn_is_over
                || self.is_paused(who)
                || self.machines[who.0].split.is_some()
            {
                at += 1;
                continue;
            }
            served.push(who);
            let mut message = pending.remove(at);
            self.answer(&mut message);
        }
    }

    fn answer(&mut self, message: &mut Message) {
        let answer = match message.answer.take() {
            Some(held) => held,
            None => self.net.carry_out(message),
        };
        self.tell(message, "answered", answer);
    }

    fn tell(&mut self, message: &mut Message, fate: &str, answer: Answer) {
        self.note(|| {
            format!(
                "p{}.{} {}: {fate}, {}",
                message.who.0,
                message.who.1,
                message.label,
                brief(&answer)
            )
        });
        message.arrive(answer);
    }

    /// Carries a request out and keeps the answer back.
    fn effect(&mut self, message: &mut Message) {
        let answer = self.net.carry_out(message);
        self.note(|| {
            let who = message.who;
            format!(
                "p{}.{} {}: done unseen, {}",
                who.0,
                who.1,
                message.label,
                brief(&answer)
            )
        });
        message.answer = Some(answer);
    }

    /// Some requests, anybody's, meet their fates. No process hears more than one answer in a turn.
    fn rough(&mut self, pending: &mut Vec<Message>) {
        let mut served = Vec::new();
        for _ in 0..1 + self.dice.below(4) {
            if pending.is_empty() {
                return;
            }
            let at = self.dice.below(pending.len() as u64) as usize;
            let who = pending[at].who;
            let (is_held, changes) = (pending[at].answer.is_some(), pending[at].ask.changes());
            if pending[at].is_orphan() || pending[at].held_until > self.turn {
                continue;
            }
            if self.is_paused(who) {
                if !is_held && self.dice.chance(50) {
                    self.count("effects while paused");
                    self.effect(&mut pending[at]);
                }
                continue;
            }
            if served.contains(&who) {
                continue;
            }
            let mut message = pending.remove(at);
            if let Some(since) = self.machines[who.0].split {
                if !is_held && changes && message.sent < since && self.dice.chance(30) {
                    self.count("effects behind a split");
                    self.effect(&mut message);
                    pending.push(message);
                } else if self.dice.chance(70) {
                    served.push(who);
                    self.count("refused by a split");
                    let error = if is_held { lost() } else { refused() };
                    self.tell(&mut message, "split", Err(error));
                } else {
                    pending.push(message);
                }
                pending.sort_by(|a, b| a.order().cmp(&b.order()));
                continue;
            }
            served.push(who);
            let is_bad = self.dice.chance(self.mood.faults);
            match (is_bad, is_held, self.dice.below(100)) {
                (false, ..) => self.answer(&mut message),
                (true, true, _) => {
                    self.count("answers lost");
                    self.tell(&mut message, "answer lost", Err(lost()));
                }
                (true, false, 0..35) => {
                    self.count("answers delayed");
                    self.effect(&mut message);
                    pending.push(message);
                }
                (true, false, 35..60) => {
                    self.count(if changes {
                        "answers to changes lost"
                    } else {
                        "answers lost"
                    });
                    self.effect(&mut message);
                    message.answer = None;
                    self.tell(&mut message, "answer lost", Err(lost()));
                }
                (true, false, 60..80) => {
                    self.count("refused");
                    self.tell(&mut message, "refused", Err(refused()));
                }
                _ => {
                    // The sender gives up; what it sent is still on its way.
                    self.count("given up");
                    self.tell(&mut message, "given up", Err(lost()));
                    pending.push(message);
                }
            }
            pending.sort_by(|a, b| a.order().cmp(&b.order()));
        }
    }

    /// What nobody waits for any more is carried out late, or never.
    fn orphans(&mut self, pending: &mut Vec<Message>, healed: bool) {
        let mut at = 0;
        while at < pending.len() {
            if !pending[at].is_orphan() {
                at += 1;
            } else if pending[at].answer.is_some() || !pending[at].ask.changes() {
                pending.remove(at);
            } else if healed || self.dice.chance(15) {
                let mut message = pending.remove(at);
                if self.dice.chance(60) {
                    self.count("late effects");
                    self.effect(&mut message);
                }
            } else {
                at += 1;
            }
        }
    }
}
