//! A did:plc directory whose moods are scripted.

use std::sync::Arc;

use async_trait::async_trait;
use engine::clock::Clock;
use engine::repo::Did;
use parking_lot::Mutex;
use serde_json::Value;

use crate::client::plc::{PlcClient, PlcError};
use crate::plc::directory::PlcDirectory;
use crate::plc::op::{Operation, PlcState};

/// How the did:plc directory behaves.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    /// As it should.
    Well,
    /// Out of reach.
    Down,
    /// Takes nothing.
    Refusing,
    /// Takes operations, but its answers are lost.
    Mute,
    /// Takes one operation, and is out of reach from then on.
    Dying,
}

/// A directory in memory, in some mood.
pub struct ScriptedPlc {
    directory: PlcDirectory,
    mood: Mutex<Mood>,
    submitted: Mutex<Vec<Did>>,
}

impl ScriptedPlc {
    /// An empty one, which is well.
    pub(super) fn new(clock: Arc<dyn Clock>) -> ScriptedPlc {
        ScriptedPlc {
            directory: PlcDirectory::in_memory(clock),
            mood: Mutex::new(Mood::Well),
            submitted: Mutex::default(),
        }
    }

    /// What it says of a DID, whatever its mood.
    pub(super) async fn truth(&self, did: &Did) -> PlcState {
        self.directory.data(did).await.unwrap()
    }

    /// Changes its mood.
    pub fn set(&self, mood: Mood) {
        *self.mood.lock() = mood;
    }

    /// Whose operations it has taken, in order.
    pub fn submitted(&self) -> Vec<Did> {
        self.submitted.lock().clone()
    }

    /// How a DID stands.
    pub async fn is_buried(&self, did: &Did) -> bool {
        matches!(self.directory.data(did).await, Err(PlcError::Tombstoned(_)))
    }

    fn mood(&self) -> Mood {
        *self.mood.lock()
    }

    fn reach(&self) -> Result<(), PlcError> {
        match self.mood() {
            Mood::Down | Mood::Mute => Err(PlcError::Unavailable("scripted".to_owned())),
            Mood::Well | Mood::Refusing | Mood::Dying => Ok(()),
        }
    }
}

#[async_trait]
impl PlcClient for ScriptedPlc {
    async fn submit(&self, did: &Did, operation: &Operation) -> Result<(), PlcError> {
        match self.mood() {
            Mood::Down => return self.reach(),
            Mood::Refusing => {
                return Err(PlcError::Rejected {
                    status: 400,
                    message: "scripted refusal".to_owned(),
                });
            }
            Mood::Well | Mood::Mute | Mood::Dying => {}
        }
        PlcClient::submit(&self.directory, did, operation).await?;
        self.submitted.lock().push(did.clone());
        if self.mood() == Mood::Dying {
            self.set(Mood::Down);
        }
        self.reach()
    }

    async fn document(&self, did: &Did) -> Result<Value, PlcError> {
        self.reach()?;
        self.directory.document(did).await
    }

    async fn data(&self, did: &Did) -> Result<PlcState, PlcError> {
        self.reach()?;
        self.directory.data(did).await
    }

    async fn last_op(&self, did: &Did) -> Result<Operation, PlcError> {
        self.reach()?;
        self.directory.last_op(did).await
    }

    async fn log(&self, did: &Did) -> Result<Vec<Operation>, PlcError> {
        self.reach()?;
        self.directory.log(did).await
    }
}
