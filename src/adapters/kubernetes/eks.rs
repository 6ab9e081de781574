//! Tokens for EKS: a request to the region's STS, signed and not sent. The cluster sends it, and learns
//! from the answer who we are. Needs no other program and, with credentials at hand, no call.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use aws_config::{BehaviorVersion, Region};
use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use aws_sigv4::http_request::{
    SignableBody, SignableRequest, SignatureLocation, SigningSettings, sign,
};
use aws_sigv4::sign::v4;
use axum::http::Request;
use data_encoding::BASE64URL_NOPAD;

use super::tokens::{Token, TokenSource};
use crate::engine::units::WallTime;
use crate::ports::Clock;

/// How long STS takes the signed request; the cluster sends it at once.
const SIGNED_FOR: Duration = Duration::from_mins(1);
/// A cluster takes a token for 15 min from the time that stands in it. One minute for the clocks.
const GOOD_FOR: Duration = Duration::from_mins(14);
const RENEW_AFTER: Duration = Duration::from_mins(10);
/// The header that says for which cluster the request is.
const CLUSTER: &str = "x-k8s-aws-id";

/// Makes tokens for one cluster.
#[derive(Debug)]
pub(super) struct Eks {
    pub(super) cluster: String,
    pub(super) region: String,
    pub(super) credentials: SharedCredentialsProvider,
    pub(super) clock: std::sync::Arc<dyn Clock>,
}

/// The credentials that this machine has: environment, profile, web identity, container or instance
/// role.
pub(super) async fn machine_credentials(region: &str) -> Option<SharedCredentialsProvider> {
    let loader = aws_config::defaults(BehaviorVersion::latest());
    let loaded = loader.region(Region::new(region.to_owned())).load().await;
    loaded.credentials_provider()
}

#[async_trait]
impl TokenSource for Eks {
    async fn make(&self) -> Result<Token, String> {
        let credentials = self.credentials.provide_credentials().await;
        let credentials = credentials.map_err(|cause| format!("no credentials of AWS: {cause}"))?;
        let secret = token(credentials, &self.region, &self.cluster, self.clock.wall())?;
        Ok(Token {
            secret,
            good_for: GOOD_FOR,
            renew_after: RENEW_AFTER,
        })
    }
}

fn token(
    credentials: Credentials,
    region: &str,
    cluster: &str,
    now: WallTime,
) -> Result<String, String> {
    let url = signed_url(credentials, region, cluster, now)?;
    Ok(format!(
        "k8s-aws-v1.{}",
        BASE64URL_NOPAD.encode(url.as_bytes())
    ))
}

fn signed_url(
    credentials: Credentials,
    region: &str,
    cluster: &str,
    now: WallTime,
) -> Result<String, String> {
    let unsigned = |cause: &dyn std::fmt::Display| format!("a token cannot be signed: {cause}");
    let end = if region.starts_with("cn-") { ".cn" } else { "" };
    let host = format!("sts.{region}.amazonaws.com{end}");
    let url = format!("https://{host}/?Action=GetCallerIdentity&Version=2011-06-15");
    let identity = credentials.into();
    let mut settings = SigningSettings::default();
    settings.signature_location = SignatureLocation::QueryParams;
    settings.expires_in = Some(SIGNED_FOR);
    let at: SystemTime = UNIX_EPOCH
        .checked_add(Duration::from_millis(now.0))
        .ok_or_else(|| unsigned(&"the clock is beyond all times"))?;
    let params = v4::SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name("sts")
        .time(at)
        .settings(settings)
        .build()
        .map_err(|cause| unsigned(&cause))?
        .into();
    let headers = [("host", host.as_str()), (CLUSTER, cluster)];
    let signable = SignableRequest::new("GET", &url, headers.into_iter(), SignableBody::empty())
        .map_err(|cause| unsigned(&cause))?;
    let (signature, _) = sign(signable, &params)
        .map_err(|cause| unsigned(&cause))?
        .into_parts();
    let mut request = Request::get(&url)
        .body(())
        .map_err(|cause| unsigned(&cause))?;
    signature.apply_to_request_http1x(&mut request);
    Ok(request.uri().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

    fn url(session: Option<&str>) -> String {
        let session = session.map(str::to_owned);
        let credentials = Credentials::new("AKIDEXAMPLE", KEY, session, None, "test");
        let now = "2026-11-21T03:00:00.000Z".parse().unwrap();
        let token = token(credentials, "eu-central-1", "shop-aws", now).unwrap();
        let encoded = token.strip_prefix("k8s-aws-v1.").unwrap();
        let url = BASE64URL_NOPAD.decode(encoded.as_bytes()).unwrap();
        String::from_utf8(url).unwrap()
    }

    /// The signatures are those that another implementation makes of the same request.
    #[test]
    fn a_token_is_a_signed_request_that_another_implementation_signs_alike() {
        let plain = url(None);
        assert!(
            plain.starts_with("https://sts.eu-central-1.amazonaws.com/?"),
            "{plain}"
        );
        for part in [
            "Action=GetCallerIdentity",
            "X-Amz-Expires=60",
            "X-Amz-Date=20261121T030000Z",
            "X-Amz-SignedHeaders=host%3Bx-k8s-aws-id",
            "X-Amz-Signature=476997e049d501b13d8732223e5a69ce25638d69af25e5f907b1bd934d1578de",
        ] {
            assert!(plain.contains(part), "{part}: {plain}");
        }
        assert!(!plain.contains(KEY));
        let session = url(Some("session/token+="));
        let signature = "9c45d6a03f937206a80cafe08d6255716c95346f5033a0d0b52f775d3e722ce0";
        assert!(session.contains(signature), "{session}");
    }
}
