//! How a configuration says by whose right a Kubernetes cluster is reached.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::http::Uri;

use super::{Files, Url, is_file};
use crate::adapters::gcp;
use crate::adapters::kubernetes::{Access, Cluster, ClusterError, Server, Settings};
use crate::adapters::reread::CredentialBook;
use crate::engine::document::Section;
use crate::ports::Clock;

/// How long one call may take by default: an API server at rest answers in some milliseconds, one
/// that restarts in a second.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A cluster, as reached from here.
#[derive(Debug, Clone)]
pub struct ClusterAccess {
    /// By whose right.
    pub credential: Credential,
    /// The uid of its namespace `kube-system`; `None`: the first that is seen counts.
    pub uid: Option<String>,
    /// How long one call may take: 100 ms to 30 s.
    pub timeout: Duration,
}

/// By whose right a cluster is reached.
#[derive(Debug, Clone)]
pub enum Credential {
    /// The service account of our own pod.
    InCluster,
    /// A kubeconfig file.
    Kubeconfig {
        /// The file; mode 0600.
        path: PathBuf,
        /// Which of its contexts; `None`: the current one.
        context: Option<String>,
    },
    /// An AWS identity, at an EKS cluster.
    Eks {
        /// Its API server.
        server: ApiServer,
        /// The cluster's name in AWS.
        cluster: String,
        /// The region of the STS that it asks.
        region: String,
    },
    /// The machine's or a federation's Google identity, at a GKE cluster.
    Gke {
        /// Its API server.
        server: ApiServer,
    },
}

/// An API server, and who vouches for it.
#[derive(Debug, Clone)]
pub struct ApiServer {
    /// Its address.
    pub url: Uri,
    /// The certificates of its authority.
    pub authority: PathBuf,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    InCluster,
    Kubeconfig,
    Eks,
    Gke,
}

const KINDS: [(&str, Kind); 4] = [
    ("in-cluster", Kind::InCluster),
    ("kubeconfig", Kind::Kubeconfig),
    ("eks", Kind::Eks),
    ("gke", Kind::Gke),
];

impl ClusterAccess {
    /// Reads the credentials; the server is called with the first use.
    pub async fn connect(
        &self,
        clock: &Arc<dyn Clock>,
        book: &Arc<CredentialBook>,
    ) -> Result<Cluster, ClusterError> {
        let access = match &self.credential {
            Credential::InCluster => Access::InCluster,
            Credential::Kubeconfig { path, context } => Access::Kubeconfig {
                path: path.clone(),
                context: context.clone(),
            },
            Credential::Eks {
                server,
                cluster,
                region,
            } => Access::Eks {
                server: server.into(),
                cluster: cluster.clone(),
                region: region.clone(),
            },
            Credential::Gke { server } => {
                let google = gcp::Access::new(None, None, book);
                let refused =
                    |cause: crate::ports::EffectError| ClusterError::Refused(cause.to_string());
                Access::Gke {
                    server: server.into(),
                    google: google.map_err(refused)?,
                }
            }
        };
        let settings = Settings {
            access,
            uid: self.uid.clone(),
            timeout: self.timeout,
        };
        Cluster::connect(settings, clock, book).await
    }
}

impl From<&ApiServer> for Server {
    fn from(server: &ApiServer) -> Self {
        Self {
            url: server.url.clone(),
            authority: server.authority.clone(),
        }
    }
}

impl Files<'_> {
    /// The keys of a table that says how a cluster is reached.
    pub(crate) fn cluster(self, at: &Section<'_>) -> Option<ClusterAccess> {
        let kind = at.choice("access", &KINDS);
        let is = |wanted| kind == Some(wanted);
        let cloud = is(Kind::Eks) || is(Kind::Gke);
        let kubeconfig = at.where_chosen(is(Kind::Kubeconfig), |at| {
            let path = self.secret(at, "kubeconfig", "kubeconfig");
            let context = at.optional_text("context", "gke_shop_europe-west3_shop");
            Some((path?, context))
        });
        let server = at.where_chosen(cloud, |at| {
            let url = at.parsed::<Url>("server", "https://10.1.0.2:443");
            let authority = at.text("authority", "cluster-ca.pem");
            let authority = self.path(at, "authority", authority, |path: &Path| is_file(path));
            Some(ApiServer {
                url: url?.0,
                authority: authority?,
            })
        });
        let eks = at.where_chosen(is(Kind::Eks), |at| {
            let cluster = at.text("eks_cluster", "shop");
            let region = at.text("region", "eu-central-1");
            Some((cluster?, region?))
        });
        let uid = at.optional_text("uid", "0b8c9f0e-3a52-4b0e-9a53-0f3a1c1f5b7d");
        let bounds = Duration::from_millis(100)..=Duration::from_secs(30);
        let timeout = at.duration_or("timeout", bounds, TIMEOUT);
        let credential = match kind? {
            Kind::InCluster => Credential::InCluster,
            Kind::Kubeconfig => {
                let (path, context) = kubeconfig?;
                Credential::Kubeconfig { path, context }
            }
            Kind::Eks => {
                let (cluster, region) = eks?;
                Credential::Eks {
                    server: server?,
                    cluster,
                    region,
                }
            }
            Kind::Gke => Credential::Gke { server: server? },
        };
        Some(ClusterAccess {
            credential,
            uid,
            timeout,
        })
    }
}
