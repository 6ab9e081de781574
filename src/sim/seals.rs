//! Signatures, simulated: cheap ones, behind the ports of the real ones, so that what they mean is
//! judged by the code that is shipped. Nobody here makes one in another's name.

use super::world::World;
use crate::engine::topology::{GroupName, SiteName};
use crate::ports::{Signer, Verifier};
use crate::wire::sealed::{Author, SealError, Signature};

/// The key of one process.
#[derive(Debug, Clone)]
pub struct SimKey(pub Author);

impl SimKey {
    /// That of a site's agent.
    pub fn of(world: &World, site: &SiteName) -> Self {
        Self(Author::Agent {
            group: world.topology.group.clone(),
            site: site.clone(),
        })
    }

    fn names(&self) -> Vec<String> {
        match &self.0 {
            Author::Controller => Vec::new(),
            Author::Agent { group, site } => vec![group.to_string(), site.to_string()],
        }
    }
}

impl Signer for SimKey {
    fn sign(&self, message: &[u8]) -> Result<Signature, SealError> {
        let certificates = self.names();
        let value = mixed(&certificates, message);
        Ok(Signature {
            value,
            scheme: None,
            certificates,
        })
    }
}

/// Knows all of them.
#[derive(Debug, Clone, Copy)]
pub struct SimKeys;

impl Verifier for SimKeys {
    fn signed_by(&self, message: &[u8], signature: &Signature) -> Result<Author, SealError> {
        if signature.value != mixed(&signature.certificates, message) {
            return Err(SealError::Mismatch);
        }
        match signature.certificates.as_slice() {
            [] => Ok(Author::Controller),
            [group, site] => {
                let (group, site) = (group.parse::<GroupName>(), site.parse::<SiteName>());
                match (group, site) {
                    (Ok(group), Ok(site)) => Ok(Author::Agent { group, site }),
                    (Err(_), _) | (_, Err(_)) => Err(SealError::Mismatch),
                }
            }
            [..] => Err(SealError::Mismatch),
        }
    }
}

/// FNV-1a over a secret, who signs, and what.
fn mixed(names: &[String], message: &[u8]) -> String {
    let names = names.iter().flat_map(|name| name.bytes().chain([0]));
    let bytes = b"secret"
        .iter()
        .copied()
        .chain(names)
        .chain(message.iter().copied());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    format!("{hash:016x}")
}
