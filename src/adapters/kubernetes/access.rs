//! How to come in: where the API server is, and by whose right.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::ConfigExt;
use kube::config::Kubeconfig;
use kube::{Client, Config};
use tower::{BoxError, ServiceBuilder};

use super::tokens::{Token, TokenSource, Tokens};
use super::{ClusterError, MANAGER, eks};
use crate::adapters::reread::{CredentialBook, Reread};
use crate::adapters::{gcp, keys};
use crate::ports::Clock;

/// Google's library makes a new token four minutes before the last one ends, and says only that there is
/// one: what it gives is good for at least three minutes.
const GOOGLE_GOOD_FOR: Duration = Duration::from_mins(3);
const GOOGLE_RENEW_AFTER: Duration = Duration::from_mins(1);

/// Where an API server is, and who vouches for it.
#[derive(Debug, Clone)]
pub struct Server {
    /// Its address.
    pub url: Uri,
    /// The certificates of its authority, as PEM.
    pub authority: PathBuf,
}

/// By whose right.
#[derive(Debug, Clone)]
pub enum Access {
    /// A kubeconfig file that only its owner may read; read again when it changes.
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Which of its contexts; `None`: the current one.
        context: Option<String>,
    },
    /// The service account of the pod that we run in. Needs no cloud to be up.
    InCluster,
    /// An AWS identity that the EKS cluster knows.
    Eks {
        /// Where.
        server: Server,
        /// The cluster's name in AWS.
        cluster: String,
        /// The region of the STS that the cluster asks.
        region: String,
    },
    /// A Google identity that the GKE cluster knows.
    Gke {
        /// Where.
        server: Server,
        /// The identity: that of the machine, or of a federation. A key file makes tokens that are signed
        /// without Google, and no API server of GKE is known to take one.
        google: gcp::Access,
    },
}

/// What requests go through.
#[derive(Debug)]
pub(super) struct Door {
    client: Source,
    tokens: Option<Arc<Tokens>>,
}

#[derive(Debug)]
enum Source {
    Fixed(Shut),
    File(Reread<Shut>),
}

/// A client; its inside is not shown.
#[derive(Clone)]
struct Shut(Client);

impl std::fmt::Debug for Shut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Client")
    }
}

impl Door {
    /// Reads what there is to read; sends nothing.
    pub(super) async fn open(
        access: Access,
        timeout: Duration,
        clock: &Arc<dyn Clock>,
        book: &Arc<CredentialBook>,
    ) -> Result<Self, ClusterError> {
        let tokens = |source: Arc<dyn TokenSource>| {
            Some(Arc::new(Tokens::new(source, Arc::clone(clock), timeout)))
        };
        Ok(match access {
            Access::Kubeconfig { path, context } => {
                let read = move |path: &Path| from_file(path, context.as_deref(), timeout);
                let file = Reread::new("kubeconfig", &path, book, read);
                Self {
                    client: Source::File(file.map_err(ClusterError::Refused)?),
                    tokens: None,
                }
            }
            Access::InCluster => {
                let config = Config::incluster().map_err(|cause| {
                    ClusterError::Refused(format!("no service account: {cause}"))
                })?;
                Self {
                    client: Source::Fixed(client(config, timeout).map_err(ClusterError::Refused)?),
                    tokens: None,
                }
            }
            Access::Eks {
                server,
                cluster,
                region,
            } => {
                let credentials = eks::machine_credentials(&region).await;
                let credentials = credentials.ok_or_else(|| {
                    ClusterError::Refused("this machine has no credentials of AWS".to_owned())
                })?;
                let clock = Arc::clone(clock);
                Self {
                    client: Source::Fixed(at(server, timeout)?),
                    tokens: tokens(Arc::new(eks::Eks {
                        cluster,
                        region,
                        credentials,
                        clock,
                    })),
                }
            }
            Access::Gke { server, google } => Self {
                client: Source::Fixed(at(server, timeout)?),
                tokens: tokens(Arc::new(Google(google))),
            },
        })
    }

    /// The client of now.
    pub(super) fn client(&self) -> Client {
        match &self.client {
            Source::Fixed(client) => client.0.clone(),
            Source::File(file) => file.get().0.clone(),
        }
    }

    /// The token that a request bears, where the client does not know it itself.
    pub(super) async fn token(&self) -> Result<Option<String>, ClusterError> {
        let Some(tokens) = &self.tokens else {
            return Ok(None);
        };
        let secret = tokens.secret().await;
        secret
            .map(Some)
            .map_err(|why| ClusterError::Failed(format!("no token for the API server: {why}")))
    }

    pub(super) fn age(&self) -> Option<Duration> {
        self.tokens.as_ref()?.age()
    }
}

#[derive(Debug)]
struct Google(gcp::Access);

#[async_trait]
impl TokenSource for Google {
    async fn make(&self) -> Result<Token, String> {
        Ok(Token {
            secret: self.0.token().await?,
            good_for: GOOGLE_GOOD_FOR,
            renew_after: GOOGLE_RENEW_AFTER,
        })
    }
}

fn from_file(path: &Path, context: Option<&str>, timeout: Duration) -> Result<Shut, String> {
    // Refuses a file that others may read. What stands in it may be a key.
    keys::read_secret(path).map_err(|cause| cause.to_string())?;
    let wrong = |cause: &dyn std::fmt::Display| {
        format!("`{}` is no kubeconfig file: {cause}", path.display())
    };
    let mut file = Kubeconfig::read_from(path).map_err(|cause| wrong(&cause))?;
    if let Some(context) = context {
        file.current_context = Some(context.to_owned());
    }
    let config = Config::try_from(file).map_err(|cause| wrong(&cause))?;
    client(config, timeout)
}

fn at(server: Server, timeout: Duration) -> Result<Shut, ClusterError> {
    let mut config = Config::new(server.url);
    config.root_cert_file = Some(server.authority);
    client(config, timeout).map_err(ClusterError::Refused)
}

/// The library's own client repeats requests and logs refusals as errors: this one does neither.
fn client(mut config: Config, timeout: Duration) -> Result<Shut, String> {
    let wrong = |cause: &dyn std::fmt::Display| format!("no client for the API server: {cause}");
    config.default_retry = false;
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    // Shorter than a call, so that what certainly was not sent is told from what perhaps was.
    http.set_connect_timeout(Some(timeout / 2));
    let connector = config
        .rustls_https_connector_with_connector(http)
        .map_err(|cause| wrong(&cause))?;
    let pool = hyper_util::client::legacy::Client::builder(TokioExecutor::new());
    let auth = config.auth_layer().map_err(|cause| wrong(&cause))?;
    let extra = config
        .extra_headers_layer()
        .map_err(|cause| wrong(&cause))?;
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(auth)
        .layer(extra)
        .map_err(BoxError::from)
        .service(pool.build(connector));
    Ok(Shut(Client::new(service, config.default_namespace)))
}

/// How we name ourselves. A change without a named manager stands under it, too.
pub(super) fn user_agent() -> String {
    format!("{MANAGER}/{}", env!("CARGO_PKG_VERSION"))
}
