//! What PostgreSQL's control file says about the running server: the only file that the server
//! itself maintains and that no restart, tool or person has a reason to touch meanwhile
//! (postgres.md P12).

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Everything that a server writes there is within one sector, so that a read is never torn.
const SECTOR: usize = 512;
/// The offset of the state, in every version from 8.3 to 18: after the system identifier (8 bytes)
/// and two version numbers (4 bytes each).
const STATE_AT: std::ops::Range<usize> = 16..20;
/// `DB_IN_PRODUCTION`: the server takes writes.
const IN_PRODUCTION: u32 = 6;
/// `DB_SHUTDOWNED_IN_RECOVERY` and `DB_IN_ARCHIVE_RECOVERY`: it is a standby, or was one when it
/// ended.
const FOLLOWING: [u32; 2] = [2, 5];

/// The control file as read at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ControlFile(Vec<u8>);

impl ControlFile {
    /// Reads it. May hang with the disk.
    pub(super) fn read(data_dir: &Path) -> io::Result<Self> {
        let mut sector = Vec::with_capacity(SECTOR);
        let limit = u64::try_from(SECTOR).unwrap_or(u64::MAX);
        File::open(data_dir.join("global/pg_control"))?
            .take(limit)
            .read_to_end(&mut sector)?;
        if sector.len() < STATE_AT.end {
            return Err(io::Error::other("`pg_control` is cut off"));
        }
        Ok(Self(sector))
    }

    /// Whether it says that the server takes writes. It still does after a crash, and in a copy of
    /// a primary: it counts only if the server has written it since its start.
    pub(super) fn says_production(&self) -> bool {
        self.state() == Some(IN_PRODUCTION)
    }

    /// Whether it says that the server is a standby, or was one when it ended.
    pub(super) fn says_following(&self) -> bool {
        self.state().is_some_and(|state| FOLLOWING.contains(&state))
    }

    fn state(&self) -> Option<u32> {
        let state = self.0.get(STATE_AT).and_then(|four| four.try_into().ok());
        state.map(u32::from_ne_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_is_read_and_a_file_that_is_cut_off_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("global")).unwrap();
        let file = folder.path().join("global/pg_control");
        assert!(ControlFile::read(folder.path()).is_err());
        let mut bytes = vec![0; 8192];
        for (state, production, following) in [
            (5_u32, false, true),
            (2, false, true),
            (6, true, false),
            (1, false, false),
        ] {
            bytes[STATE_AT].copy_from_slice(&state.to_ne_bytes());
            std::fs::write(&file, &bytes).unwrap();
            let read = ControlFile::read(folder.path()).unwrap();
            assert_eq!(read.says_production(), production, "{state}");
            assert_eq!(read.says_following(), following, "{state}");
        }
        std::fs::write(&file, &bytes[..18]).unwrap();
        assert!(ControlFile::read(folder.path()).is_err());
    }
}
