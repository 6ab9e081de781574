//! The key of a service account in a file that may change at any time.

use std::path::Path;
use std::sync::Arc;

use axum::http::{Extensions, HeaderMap};
use google_cloud_auth::credentials::{
    CacheableResource, Credentials, CredentialsProvider, service_account,
};
use google_cloud_auth::errors::CredentialsError;

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

/// A file with a key as Google hands it out.
pub(super) fn read(path: &Path) -> Result<Credentials, String> {
    let text = keys::read_secret(path).map_err(|cause| cause.to_string())?;
    let wrong = |cause: &dyn std::fmt::Display| {
        format!(
            "`{}` is not the key of a service account, as JSON: {cause}",
            path.display()
        )
    };
    let key = serde_json::from_slice(&text).map_err(|cause| wrong(&cause))?;
    let scopes = service_account::AccessSpecifier::from_scopes([SCOPE]);
    let account = service_account::Builder::new(key).with_access_specifier(scopes);
    account.build().map_err(|cause| wrong(&cause))
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
    use serde_json::{Value, json};

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

    #[tokio::test]
    async fn a_file_that_is_no_key_or_open_to_others_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key.json");
        assert!(read(&path).unwrap_err().contains("key.json"));
        for text in ["", "secret", "{}", "{\"type\": \"authorized_user\"}"] {
            write(&path, text, 0o600);
            let said = read(&path).unwrap_err();
            assert!(said.contains("not the key of a service account"), "{said}");
        }
        write(&path, &key("first"), 0o644);
        assert!(read(&path).unwrap_err().contains("chmod 600"));
        write(&path, &key("first"), 0o600);
        assert!(read(&path).is_ok());
    }
}
