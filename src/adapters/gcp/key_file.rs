//! The key of a service account in a file that may change at any time.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use aws_lc_rs::signature::RsaKeyPair;
use axum::http::{Extensions, HeaderMap};
use google_cloud_auth::credentials::{
    CacheableResource, Credentials, CredentialsProvider, service_account,
};
use google_cloud_auth::errors::CredentialsError;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject as _;
use serde::Deserialize;
use serde_json::Value;

use super::SCOPE;
use crate::adapters::keys;
use crate::adapters::reread::{CredentialBook, Reread};

/// Signs for the account whose key the file holds when a call is made.
#[derive(Debug)]
pub(super) struct KeyFile(Reread<Credentials>);

impl KeyFile {
    pub(super) fn open(path: &Path, book: &Arc<CredentialBook>) -> Result<Self, String> {
        Ok(Self(Reread::new("service account key", path, book, read)?))
    }
}

/// What is used of a key, as Google hands it out.
#[derive(Deserialize)]
#[expect(dead_code, reason = "each must be there for Google's library to sign")]
struct Fields {
    client_email: String,
    private_key_id: String,
    private_key: String,
    project_id: String,
}

/// Whether a file holds a key that can sign. Needs no runtime, unlike the credentials that are made
/// of one.
pub(super) fn check(path: &Path) -> Result<Value, String> {
    let text = keys::read_secret(path).map_err(|cause| cause.to_string())?;
    let wrong = |cause: &dyn fmt::Display| {
        format!(
            "`{}` is not the key of a service account, as JSON: {cause}",
            path.display()
        )
    };
    let whole: Value = serde_json::from_slice(&text).map_err(|cause| wrong(&cause))?;
    let key = Fields::deserialize(&whole).map_err(|cause| wrong(&cause))?;
    let signs = PrivatePkcs8KeyDer::from_pem_slice(key.private_key.as_bytes())
        .map_err(|cause| wrong(&format_args!("`private_key`: {cause}")))?;
    RsaKeyPair::from_pkcs8(signs.secret_pkcs8_der())
        .map_err(|cause| wrong(&format_args!("`private_key`: {cause}")))?;
    Ok(whole)
}

/// What signs for the account of a key.
fn read(path: &Path) -> Result<Credentials, String> {
    let key = check(path)?;
    let scopes = service_account::AccessSpecifier::from_scopes([SCOPE]);
    let account = service_account::Builder::new(key).with_access_specifier(scopes);
    account
        .build()
        .map_err(|cause| format!("`{}`: {cause}", path.display()))
}

impl CredentialsProvider for KeyFile {
    async fn headers(
        &self,
        extensions: Extensions,
    ) -> Result<CacheableResource<HeaderMap>, CredentialsError> {
        let now = self.0.get();
        now.headers(extensions).await
    }

    async fn universe_domain(&self) -> Option<String> {
        self.0.get().universe_domain().await
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
    use aws_lc_rs::rsa::{KeyPair, KeySize};
    use data_encoding::{BASE64, BASE64URL_NOPAD};
    use serde_json::json;

    use super::*;

    /// A key as Google hands it out.
    fn key(id: &str) -> String {
        let pair = KeyPair::generate(KeySize::Rsa2048).unwrap();
        let der = AsDer::<Pkcs8V1Der<'_>>::as_der(&pair).unwrap();
        let pem = format!(
            "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
            BASE64.encode(der.as_ref())
        );
        json!({
            "type": "service_account", "project_id": "shop", "private_key_id": id,
            "private_key": pem, "client_email": "failover@shop.iam.gserviceaccount.com",
            "client_id": "1", "token_uri": "http://127.0.0.1:9/token",
        })
        .to_string()
    }

    fn write(path: &Path, text: &str, mode: u32) {
        std::fs::write(path, text).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    /// By which key a token is signed that the next call would carry.
    async fn signed_by(file: &KeyFile) -> String {
        let headers = file.headers(Extensions::new()).await.unwrap();
        let CacheableResource::New { data, .. } = headers else {
            panic!("no headers");
        };
        let token = data["authorization"].to_str().unwrap();
        let head = token.strip_prefix("Bearer ").unwrap();
        let head = BASE64URL_NOPAD.decode(head.split('.').next().unwrap().as_bytes());
        let head: Value = serde_json::from_slice(&head.unwrap()).unwrap();
        head["kid"].as_str().unwrap().to_owned()
    }

    #[tokio::test]
    async fn the_key_is_that_of_the_file_when_a_call_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.json");
        write(&path, &key("first"), 0o600);
        let file = KeyFile::open(&path, &Arc::default()).unwrap();
        assert_eq!(signed_by(&file).await, "first");
        write(&path, "half a ke", 0o600);
        assert_eq!(signed_by(&file).await, "first", "the old one goes on");
        write(&path, &key("second"), 0o600);
        assert_eq!(signed_by(&file).await, "second");
        assert!(!format!("{file:?}").contains("PRIVATE"));
    }

    /// Settings are checked where no runtime runs.
    #[test]
    fn a_file_that_is_no_key_or_open_to_others_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.json");
        assert!(check(&path).unwrap_err().contains("key.json"));
        let unsigned = key("first").replace("PRIVATE KEY", "PUBLIC KEY");
        for text in [
            "",
            "secret",
            "{}",
            "{\"type\": \"authorized_user\"}",
            &unsigned,
        ] {
            write(&path, text, 0o600);
            let said = check(&path).unwrap_err();
            assert!(said.contains("not the key of a service account"), "{said}");
        }
        write(&path, &key("first"), 0o644);
        assert!(check(&path).unwrap_err().contains("chmod 600"));
        write(&path, &key("first"), 0o600);
        assert!(check(&path).is_ok());
    }
}
