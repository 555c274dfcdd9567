//! The signed root of a repository: which tree it has, whose it is, and since when.
//!
//! A commit is a DAG-CBOR block `{did, rev, sig, data, prev, version: 3}`; the signature is over the same map without
//! `sig`. `prev` is always null in ours; it is kept for commits from elsewhere, whose signature covers it.
//! Spec: <https://atproto.com/specs/repository#commit-objects>.

use super::cbor::{CborError, Reader, Writer};
use super::cid::Cid;
use super::did::{Did, DidError};
use super::keys::{PublicKey, SIGNATURE_BYTES, SignatureError, SigningError, SigningKey};
use super::tid::{Tid, TidError};
use bytes::Bytes;

/// The only version of commits that is read and written.
pub const COMMIT_VERSION: u64 = 3;
/// Longest commit block that is read: room for the longest DID, and small enough for any sync event.
pub const MAX_COMMIT_BYTES: usize = 4096;

/// What a commit says, before somebody signs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnsignedCommit {
    /// Whose repository.
    pub did: Did,
    /// The root of its tree.
    pub data: Cid,
    /// Later than that of the commit before.
    pub rev: Tid,
}

/// A signed commit and its block. Whether the signature holds is told by [`verify`](Commit::verify); for one that was
/// just signed it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    content: UnsignedCommit,
    prev: Option<Cid>,
    sig: [u8; SIGNATURE_BYTES],
    cid: Cid,
    bytes: Bytes,
}

/// Why bytes are not a commit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// More than [`MAX_COMMIT_BYTES`].
    #[error("a commit of {0} bytes")]
    TooLong(usize),
    /// Not DAG-CBOR, or not the map that a commit is.
    #[error("commit bytes: {0}")]
    Cbor(#[from] CborError),
    /// Another version than 3.
    #[error("commit version {0} is not supported")]
    Version(u64),
    /// `did` is none.
    #[error("the commit's did: {0}")]
    Did(#[from] DidError),
    /// `rev` is none.
    #[error("the commit's rev: {0}")]
    Rev(#[from] TidError),
    /// The signature has another length than 64 bytes.
    #[error("a signature of {0} bytes")]
    SignatureLength(usize),
}

impl UnsignedCommit {
    /// The bytes that are signed.
    #[must_use]
    pub fn bytes_to_sign(&self) -> Vec<u8> {
        self.encode(None, None)
    }

    /// Signs. The signature was verified when this returns.
    ///
    /// # Errors
    /// See [`SigningError`].
    pub fn sign(self, key: &SigningKey) -> Result<Commit, SigningError> {
        let sig = key.sign(&self.bytes_to_sign())?;
        Ok(self.with_signature(sig))
    }

    /// As [`UnsignedCommit::sign`] in half the time, for tests that make many commits and verify them later.
    #[cfg(test)]
    pub(crate) fn sign_unverified(self, key: &SigningKey) -> Result<Commit, SigningError> {
        let sig = key.sign_unverified(&self.bytes_to_sign())?;
        Ok(self.with_signature(sig))
    }

    fn with_signature(self, sig: [u8; SIGNATURE_BYTES]) -> Commit {
        let bytes: Bytes = self.encode(None, Some(&sig)).into();
        Commit {
            cid: Cid::for_dag_cbor(&bytes),
            bytes,
            prev: None,
            sig,
            content: self,
        }
    }

    fn encode(&self, prev: Option<&Cid>, sig: Option<&[u8]>) -> Vec<u8> {
        let mut out = Vec::with_capacity(256);
        let mut writer = Writer::new(&mut out);
        writer.map(if sig.is_some() { 6 } else { 5 });
        writer.text("did").text(self.did.as_str());
        writer.text("rev").text(&self.rev.to_string());
        if let Some(sig) = sig {
            writer.text("sig").bytes(sig);
        }
        writer.text("data").link(&self.data);
        writer.text("prev").link_or_null(prev);
        writer.text("version").uint(COMMIT_VERSION);
        out
    }
}

impl Commit {
    /// Reads a commit block of any origin. The signature is not checked.
    ///
    /// # Errors
    /// See [`CommitError`].
    pub fn decode(bytes: Bytes) -> Result<Commit, CommitError> {
        if bytes.len() > MAX_COMMIT_BYTES {
            return Err(CommitError::TooLong(bytes.len()));
        }
        let mut reader = Reader::new(&bytes);
        let mut keys = reader.map()?;
        keys.expect(&mut reader, "did")?;
        let did = reader.text()?.parse()?;
        keys.expect(&mut reader, "rev")?;
        let rev = reader.text()?.parse()?;
        keys.expect(&mut reader, "sig")?;
        let sig = reader.bytes()?;
        let sig = sig
            .try_into()
            .map_err(|_| CommitError::SignatureLength(sig.len()))?;
        keys.expect(&mut reader, "data")?;
        let data = reader.link()?;
        keys.expect(&mut reader, "prev")?;
        let prev = if reader.null_if_present()? {
            None
        } else {
            Some(reader.link()?)
        };
        keys.expect(&mut reader, "version")?;
        let version = reader.u64()?;
        if version != COMMIT_VERSION {
            return Err(CommitError::Version(version));
        }
        keys.end(&reader)?;
        reader.end()?;
        let content = UnsignedCommit { did, data, rev };
        Ok(Commit {
            content,
            prev,
            sig,
            cid: Cid::for_dag_cbor(&bytes),
            bytes,
        })
    }

    /// Checks the signature.
    ///
    /// # Errors
    /// It is not one by this key over this commit.
    pub fn verify(&self, key: &PublicKey) -> Result<(), SignatureError> {
        key.verify(&self.content.encode(self.prev.as_ref(), None), &self.sig)
    }

    /// The block's address.
    #[must_use]
    pub fn cid(&self) -> Cid {
        self.cid
    }

    /// The block.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Whose repository.
    #[must_use]
    pub fn did(&self) -> &Did {
        &self.content.did
    }

    /// The root of its tree.
    #[must_use]
    pub fn data(&self) -> Cid {
        self.content.data
    }

    /// The revision.
    #[must_use]
    pub fn rev(&self) -> Tid {
        self.content.rev
    }

    /// The commit before, which commits of today do not tell.
    #[must_use]
    pub fn prev(&self) -> Option<Cid> {
        self.prev
    }

    /// The signature: r and s, 32 bytes each.
    #[must_use]
    pub fn sig(&self) -> &[u8; SIGNATURE_BYTES] {
        &self.sig
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::cbor::CborErrorKind;
    use proptest::prelude::*;

    fn key() -> SigningKey {
        SigningKey::from_bytes(&[7; 32]).unwrap()
    }

    fn signed() -> Commit {
        let unsigned = UnsignedCommit {
            did: "did:plc:ewvi7nxzyoun6zhxrhs64oiz".parse().unwrap(),
            data: Cid::for_dag_cbor(b"root"),
            rev: "3jzfcijpj2z2a".parse().unwrap(),
        };
        unsigned.sign(&key()).unwrap()
    }

    #[test]
    fn a_signed_commit_reads_back_and_verifies() {
        let commit = signed();
        assert_eq!(commit.cid(), Cid::for_dag_cbor(commit.bytes()));
        let read = Commit::decode(commit.bytes().clone()).unwrap();
        assert_eq!(read, commit);
        assert_eq!(read.verify(&key().public_key()), Ok(()));
        let other = SigningKey::from_bytes(&[8; 32]).unwrap();
        assert_eq!(read.verify(&other.public_key()), Err(SignatureError::Mismatch));
    }

    #[test]
    fn another_implementation_takes_the_commit_and_the_proofs_below_it() {
        use crate::repo::car::{write_block, write_header};
        use crate::repo::mst::Tree;
        use std::collections::HashMap;

        let record = b"\xa1\x65$type\x61x".as_slice();
        let mut tree = Tree::empty();
        let mut store: HashMap<Cid, Bytes> = HashMap::new();
        for number in 0..200 {
            let key = format!("com.example.record/{number}");
            tree.insert(&key, Cid::for_dag_cbor(record), &store).unwrap();
        }
        let flushed = tree.flush();
        store.extend(flushed.added);
        let commit = UnsignedCommit {
            data: flushed.root,
            ..signed().content
        };
        let commit = commit.sign(&key()).unwrap();

        let foreign_did = shrike::syntax::Did::try_from(commit.did().as_str()).unwrap();
        let foreign_key = shrike::crypto::parse_did_key(&key().public_key().to_did_key()).unwrap();
        let collection = shrike::syntax::Nsid::try_from("com.example.record").unwrap();
        for (rkey, is_there) in [("7", true), ("150", true), ("200", false), ("~", false)] {
            let proof = tree
                .path_blocks(&format!("com.example.record/{rkey}"), &store)
                .unwrap();
            assert_eq!(proof.value.is_some(), is_there);
            let mut car = Vec::new();
            write_header(&mut car, &[commit.cid()]);
            write_block(&mut car, &commit.cid(), commit.bytes());
            for (cid, bytes) in &proof.nodes {
                write_block(&mut car, cid, bytes);
            }
            if let Some(cid) = &proof.value {
                write_block(&mut car, cid, record);
            }
            let rkey = shrike::syntax::RecordKey::try_from(rkey).unwrap();
            let seen =
                shrike::repo::verify_record_proof(&car, &foreign_did, &*foreign_key, &collection, &rkey)
                    .unwrap();
            assert_eq!(
                seen.record.map(|(_, bytes)| bytes).as_deref(),
                is_there.then_some(record)
            );
            assert_eq!(seen.commit_cid.to_bytes(), commit.cid().to_bytes());
        }
    }

    #[test]
    fn a_foreign_commit_with_a_predecessor_is_covered_by_its_signature() {
        let ours = signed();
        let prev = Cid::for_dag_cbor(b"before");
        let sig = key().sign(&ours.content.encode(Some(&prev), None)).unwrap();
        let bytes = ours.content.encode(Some(&prev), Some(&sig));
        let commit = Commit::decode(bytes.into()).unwrap();
        assert_eq!(commit.prev(), Some(prev));
        assert_eq!(commit.verify(&key().public_key()), Ok(()));
        assert_ne!(commit.cid(), ours.cid());
    }

    #[test]
    fn another_version_signature_or_shape_is_refused() {
        let commit = signed();
        let mut version = commit.bytes().to_vec();
        *version.last_mut().unwrap() = 2;
        assert_eq!(Commit::decode(version.into()), Err(CommitError::Version(2)));
        let short = commit.content.encode(None, Some(&[1; 63]));
        assert_eq!(
            Commit::decode(short.into()),
            Err(CommitError::SignatureLength(63))
        );
        let unsigned = Commit::decode(commit.content.bytes_to_sign().into());
        assert!(matches!(
            unsigned,
            Err(CommitError::Cbor(CborError {
                kind: CborErrorKind::MissingKey("sig"),
                ..
            }))
        ));
        let long = Bytes::from(vec![0; MAX_COMMIT_BYTES + 1]);
        assert_eq!(
            Commit::decode(long),
            Err(CommitError::TooLong(MAX_COMMIT_BYTES + 1))
        );
    }

    proptest! {
        #[test]
        fn changed_bytes_never_panic_nor_verify(at in any::<prop::sample::Index>(), value in any::<u8>()) {
            let commit = signed();
            let mut bytes = commit.bytes().to_vec();
            let at = at.index(bytes.len());
            prop_assume!(bytes[at] != value);
            bytes[at] = value;
            if let Ok(changed) = Commit::decode(bytes.into()) {
                prop_assert!(changed.verify(&key().public_key()).is_err());
            }
        }
    }
}
