//! What is not believed any more although it has not ended: certificates whose key was lost, keys
//! of orders, and whatever a list of an authority (a CRL) names.
//!
//! One file for all of it. Its lines are what `openssl x509 -noout -fingerprint -sha256` and
//! `openssl x509 -noout -serial` print, or the text of a public order key; empty lines and those
//! that begin with `#` say nothing. PEM blocks of CRLs may stand among them.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::Path;

use data_encoding::HEXUPPER;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use sha2::{Digest, Sha256};

use super::super::keys::VerifyingKey;
use super::super::reread::FILE_LIMIT;
use super::TlsError;

/// The marks of a PEM block.
const BEGIN: &str = "-----BEGIN ";
const END: &str = "-----END ";

/// A revocation list.
#[derive(Debug, Default)]
pub(crate) struct Revoked {
    fingerprints: BTreeSet<[u8; 32]>,
    serials: BTreeSet<Vec<u8>>,
    keys: Vec<VerifyingKey>,
    pub(super) lists: Vec<CertificateRevocationListDer<'static>>,
}

impl Revoked {
    /// Reads a list. One line that makes no sense spoils the whole: what it was to revoke would
    /// go on, and nobody would know.
    pub(crate) fn from_file(path: &Path) -> Result<Self, TlsError> {
        let malformed = |cause: String| TlsError::Malformed {
            path: path.to_owned(),
            what: "a revocation list",
            cause,
        };
        let failed = |cause: std::io::Error| malformed(cause.to_string());
        let mut text = String::new();
        let file = std::fs::File::open(path).map_err(failed)?;
        let read = file.take(FILE_LIMIT).read_to_string(&mut text);
        if u64::try_from(read.map_err(failed)?).unwrap_or(u64::MAX) >= FILE_LIMIT {
            return Err(malformed(format!("it is larger than {FILE_LIMIT} bytes")));
        }
        let mut list = Self::default();
        let mut in_block = false;
        for (number, line) in (1..).zip(text.lines().map(str::trim)) {
            if line.starts_with(BEGIN) {
                in_block = true;
            } else if line.starts_with(END) {
                in_block = false;
            } else if !in_block && !line.is_empty() && !line.starts_with('#') {
                list.take(line)
                    .map_err(|cause| malformed(format!("line {number}: {cause}")))?;
            }
        }
        if in_block {
            return Err(malformed("a PEM block has no end".to_owned()));
        }
        list.lists = CertificateRevocationListDer::pem_slice_iter(text.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|cause| malformed(cause.to_string()))?;
        Ok(list)
    }

    fn take(&mut self, line: &str) -> Result<(), String> {
        if let Ok(key) = line.parse() {
            self.keys.push(key);
            return Ok(());
        }
        let (name, value) = line.rsplit_once('=').unwrap_or(("", line));
        let digits = value.replace(':', "").to_ascii_uppercase();
        let bytes = HEXUPPER.decode(digits.as_bytes());
        let bytes = bytes.map_err(|_cause| {
            "neither a fingerprint (`openssl x509 -noout -fingerprint -sha256`), a serial (`openssl x509 -noout -serial`) nor a public order key".to_owned()
        })?;
        if name.trim().eq_ignore_ascii_case("serial") {
            self.serials.insert(without_zeros(&bytes).to_vec());
            return Ok(());
        }
        let fingerprint = <[u8; 32]>::try_from(bytes);
        let fingerprint = fingerprint.map_err(|_length| {
            "a fingerprint has 64 digits: `openssl x509 -noout -fingerprint -sha256` prints it"
                .to_owned()
        })?;
        self.fingerprints.insert(fingerprint);
        Ok(())
    }

    /// Whether a certificate is named, by fingerprint or serial.
    pub(crate) fn names(&self, certificate: &CertificateDer<'_>) -> bool {
        let fingerprint: [u8; 32] = Sha256::digest(certificate).into();
        let serial = webpki::EndEntityCert::try_from(certificate);
        let serial = serial.map(|parsed| without_zeros(parsed.serial()).to_vec());
        self.fingerprints.contains(&fingerprint)
            || serial.is_ok_and(|serial| self.serials.contains(&serial))
    }

    /// Whether a key of orders is named.
    pub(crate) fn names_key(&self, key: &VerifyingKey) -> bool {
        self.keys.contains(key)
    }
}

fn without_zeros(bytes: &[u8]) -> &[u8] {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    bytes.get(zeros..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> Result<Revoked, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("revoked.txt");
        std::fs::write(&path, text).unwrap();
        Revoked::from_file(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn lines_are_what_openssl_prints() {
        let fingerprint = ["AB"; 32].join(":");
        let text = format!(
            "# lost with a laptop\n\nsha256 Fingerprint={fingerprint}\nserial=00FF01\n{}\n",
            "ab".repeat(32).replace('a', "c")
        );
        let list = list(&text).unwrap();
        assert_eq!(list.fingerprints.len(), 2);
        assert!(list.fingerprints.contains(&[0xAB; 32]));
        assert!(list.serials.contains(&vec![0xFF, 0x01]));
    }

    #[test]
    fn a_line_without_sense_spoils_the_list_and_is_named() {
        for (text, said) in [
            ("sha256 Fingerprint=AB:CD", "64 digits"),
            ("serial=xyz", "neither"),
            ("# fine\nalice", "line 2"),
            ("-----BEGIN X509 CRL-----\nAAAA", "no end"),
        ] {
            let error = list(text).unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
        assert!(list("").unwrap().fingerprints.is_empty());
    }
}
