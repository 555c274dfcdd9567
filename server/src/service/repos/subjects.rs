//! What commits on their way make of the subjects of records, ahead of the index: see [`Subject`].

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use engine::repo::Subject;
use parking_lot::Mutex;

use super::actor::Fate;

/// How many records one creation deletes at most because they are about the same. There are more only where `applyWrites` or an
/// import made them; the next creation goes on.
pub(super) const DOUBLES_MAX: usize = 20;

/// A record that an operation touched, and what it is about since.
pub(super) type Touched = (String, Option<Subject>);

/// Records that commits on their way have touched, of the collections that have subjects. It holds what the index may not know, so
/// it is bounded by what may be on its way.
#[derive(Default)]
pub(super) struct Underway {
    /// In the order of the log.
    commits: VecDeque<(u64, Arc<Mutex<Fate>>, Vec<Touched>)>,
    next: u64,
    /// What each record is about, by the newest commit that touched it.
    paths: HashMap<String, (u64, Option<Subject>)>,
    /// Records by what they are about. May hold some that are about something else by now.
    subjects: HashMap<Subject, Vec<String>>,
}

impl Underway {
    /// Notes what the commit with this fate has touched.
    pub(super) fn push(&mut self, fate: &Arc<Mutex<Fate>>, touched: Vec<Touched>) {
        if touched.is_empty() {
            return;
        }
        let number = self.next;
        self.next += 1;
        for (path, subject) in &touched {
            self.paths.insert(path.clone(), (number, *subject));
            if let Some(subject) = subject {
                self.subjects.entry(*subject).or_default().push(path.clone());
            }
        }
        self.commits.push_back((number, fate.clone(), touched));
    }

    /// Forgets what the index knows by now. Has to come before a snapshot of the index is taken.
    pub(super) fn settle(&mut self) {
        while let Some((_, fate, _)) = self.commits.front() {
            if !fate.lock().is_decided() {
                return;
            }
            let Some((number, _, touched)) = self.commits.pop_front() else {
                return;
            };
            for (path, subject) in touched {
                if self.paths.get(&path).is_some_and(|(newest, _)| *newest == number) {
                    self.paths.remove(&path);
                }
                let Some(subject) = subject else { continue };
                if let Some(about) = self.subjects.get_mut(&subject) {
                    // One of them: a later commit may have made it anew.
                    if let Some(at) = about.iter().position(|there| *there == path) {
                        about.remove(at);
                    }
                    if about.is_empty() {
                        self.subjects.remove(&subject);
                    }
                }
            }
        }
    }

    /// Whether a commit on its way has touched this record, so that the index is not to be asked about it.
    pub(super) fn knows(&self, path: &str) -> bool {
        self.paths.contains_key(path)
    }

    /// Records on their way that are about `subject`.
    pub(super) fn about(&self, subject: &Subject) -> impl Iterator<Item = &String> {
        let all = self.subjects.get(subject).into_iter().flatten();
        all.filter(|path| {
            let newest = self.paths.get(*path);
            newest.is_some_and(|(_, about)| about.as_ref() == Some(subject))
        })
    }
}

#[cfg(test)]
mod tests {
    use engine::repo::SubjectKind;

    use super::*;

    #[test]
    fn what_is_on_its_way_is_known_until_it_is_decided() {
        let (one, two) = (
            Subject::new(SubjectKind::Like, "one"),
            Subject::new(SubjectKind::Like, "two"),
        );
        let fates: Vec<_> = (0..3).map(|_| Arc::new(Mutex::new(Fate::waiting()))).collect();
        let path = |name: &str| format!("app.bsky.feed.like/{name}");
        let about =
            |underway: &Underway, subject| -> Vec<String> { underway.about(subject).cloned().collect() };
        let mut underway = Underway::default();
        underway.push(&fates[0], vec![(path("a"), Some(one)), (path("b"), Some(two))]);
        underway.push(&fates[1], vec![(path("a"), None), (path("c"), Some(one))]);
        underway.push(&fates[2], vec![(path("a"), Some(one))]);
        let mut found = about(&underway, &one);
        found.sort();
        found.dedup();
        assert_eq!(found, [path("a"), path("c")]);
        assert_eq!(about(&underway, &two), [path("b")]);

        // The second is decided, but not before the first.
        fates[1].lock().decided_for_test();
        underway.settle();
        assert!(underway.knows(&path("b")));
        fates[0].lock().decided_for_test();
        underway.settle();
        assert!(!underway.knows(&path("b")) && !underway.knows(&path("c")));
        assert_eq!(about(&underway, &one), [path("a")]);
        fates[2].lock().decided_for_test();
        underway.settle();
        assert!(underway.paths.is_empty() && underway.subjects.is_empty() && underway.commits.is_empty());
    }
}
