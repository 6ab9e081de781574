//! What the agent serves: orders of the controller, direct or relayed; questions of the peer agent;
//! and, in plain HTTP, whether users may be sent here.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{ConnectInfo, DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Json, Router};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::Instrument;

use super::cluster::ClusterSeen;
use super::keeper::{News, Shown};
use super::metrics::{self, Scraped};
use crate::adapters::exposition::expose;
use crate::adapters::messages::{Incoming, Outgoing};
use crate::adapters::places::placed;
use crate::adapters::tls::{Identity, PeerClient, PeerIdentity};
use crate::engine::topology::{GroupName, SiteName};
use crate::ports::{Clock, EffectError, Signer, Verifier};
use crate::wire::sealed::{SealError, Sealed, SignedOrder, seal_answer};
use crate::wire::{
    MESSAGE_LIMIT, ORDER_PATH, PEER_PATH, PeerAnswer, PeerQuestion, RELAY_PATH, RelayAnswer,
    Relayed,
};

/// How long an order is relayed at most, whatever the controller says: a later answer of the peer
/// agent would be too late for any step.
const LONGEST_RELAY: Duration = Duration::from_secs(60);

/// The shared state of the handlers.
#[derive(Debug, Clone)]
pub struct Api {
    /// Our group.
    pub group: GroupName,
    /// Our site.
    pub site: SiteName,
    /// The other site.
    pub peer_site: SiteName,
    /// The peer agent.
    pub peer: PeerClient,
    /// Verifies the controller's orders.
    pub controller: Arc<dyn Verifier>,
    /// Signs our answers.
    pub own: Arc<dyn Signer>,
    /// The keeper.
    pub news: mpsc::Sender<News>,
    /// The keeper's published state.
    pub shown: watch::Receiver<Shown>,
    /// The cluster around us, if there is one, once it was looked at.
    pub cluster: watch::Receiver<Option<ClusterSeen>>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
}

/// The API for the controller and the peer agent.
pub fn router(api: Api) -> Router {
    let group = api.group.clone();
    let routes = Router::new()
        .route(ORDER_PATH, post(order))
        .route(RELAY_PATH, post(relay))
        .route(PEER_PATH, post(peer))
        .layer(DefaultBodyLimit::max(MESSAGE_LIMIT))
        .with_state(api);
    placed(&group, routes)
}

/// The API for load balancers and supervisors.
pub fn plain_router(api: Api) -> Router {
    Router::new()
        .route("/livez", get(|| async { "alive\n" }))
        .route("/traffic-ready", get(traffic_ready))
        .route("/metrics", get(metrics))
        .with_state(api)
}

type Denied = (StatusCode, String);

fn denied(peer: &PeerIdentity, what: &str) -> Denied {
    tracing::warn!(identity = %peer.identity, what, "rejected");
    (
        StatusCode::FORBIDDEN,
        format!("`{}` may not {what}", peer.identity),
    )
}

/// Passes an order to the keeper, and signs its answer. Only the signature counts, not who
/// delivered it.
async fn order(
    State(api): State<Api>,
    ConnectInfo(peer): ConnectInfo<PeerIdentity>,
    Json(sealed): Json<Sealed>,
) -> Result<Json<Sealed>, Denied> {
    let known = match &peer.identity {
        Identity::Controller => true,
        Identity::Agent { group, site } => *group == api.group && *site == api.peer_site,
        Identity::Observer { .. } | Identity::Operator { .. } | Identity::Other(_) => false,
    };
    if !known {
        return Err(denied(&peer, "give orders"));
    }
    let opened = SignedOrder::open(sealed, api.controller.as_ref());
    let order = opened.map_err(|error| no_order(&peer, &error))?;
    let span = order.order().span();
    answer(&api, order).instrument(span).await
}

async fn answer(api: &Api, order: SignedOrder) -> Result<Json<Sealed>, Denied> {
    let (sender, answer) = oneshot::channel();
    let told = News::Ordered(Box::new(order.clone()), sender);
    let answer = match api.news.send(told).await {
        Ok(()) => answer.await.ok(),
        Err(_closed) => None,
    };
    let answer =
        answer.unwrap_or_else(|| Err(EffectError::Failed("the agent is stopping".to_owned())));
    seal_answer(&order, answer, api.own.as_ref())
        .map(Json)
        .map_err(|error| {
            tracing::error!(%error, "an answer cannot be signed");
            (StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
        })
}

/// Why something is not obeyed, nor carried.
fn no_order(peer: &PeerIdentity, error: &SealError) -> Denied {
    if let SealError::NotUnderstood(refused) = error {
        tracing::error!(%refused, "an order of the controller is not understood");
        return (StatusCode::UNPROCESSABLE_ENTITY, refused.to_string());
    }
    tracing::warn!(%error, identity = %peer.identity, "an order with a wrong signature");
    (
        StatusCode::FORBIDDEN,
        format!("the order is not the controller's: {error}"),
    )
}

/// Carries an order to the other agent, and its answer back: as they are, and whether or not this agent
/// understands them.
async fn relay(
    State(api): State<Api>,
    ConnectInfo(peer): ConnectInfo<PeerIdentity>,
    Incoming(written): Incoming<Relayed>,
) -> Result<Json<RelayAnswer>, Denied> {
    let Relayed { order, within } = written.message;
    if peer.identity != Identity::Controller {
        return Err(denied(&peer, "have orders relayed"));
    }
    let ours = order.is_order(api.controller.as_ref());
    ours.map_err(|error| no_order(&peer, &error))?;
    let within = within.min(LONGEST_RELAY);
    let answer = api.peer.post(ORDER_PATH, &order, within).await;
    Ok(Json(answer.map_err(EffectError::from)))
}

async fn peer(
    State(api): State<Api>,
    ConnectInfo(peer): ConnectInfo<PeerIdentity>,
    Incoming(written): Incoming<PeerQuestion>,
) -> Result<Outgoing<PeerAnswer>, Denied> {
    let question = written.message;
    let expected = Identity::Agent {
        group: api.group.clone(),
        site: api.peer_site.clone(),
    };
    if peer.identity != expected || question.site != api.peer_site {
        return Err(denied(&peer, "ask as the peer agent"));
    }
    let (sender, answer) = oneshot::channel();
    let stopping = |()| {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "the agent is stopping".to_owned(),
        )
    };
    let told = api.news.send(News::PeerAsks(question, sender)).await;
    told.map_err(|_closed| stopping(()))?;
    answer.await.map(Outgoing).map_err(|_closed| stopping(()))
}

/// 200 only if users may write: the site holds the lease, and its database runs as a primary.
async fn traffic_ready(State(api): State<Api>) -> (StatusCode, String) {
    let shown = api.shown.borrow().clone();
    let held = shown.may_write(api.clock.now());
    if held && shown.primary {
        (StatusCode::OK, format!("ready in epoch {}\n", shown.epoch))
    } else {
        let why = if held {
            "the database is down"
        } else {
            "no write lease"
        };
        (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("{why}, epoch {}\n", shown.epoch),
        )
    }
}

/// For Prometheus.
async fn metrics(State(api): State<Api>) -> Response {
    let scraped = Scraped {
        shown: api.shown.borrow().clone(),
        now: api.clock.now(),
        wall: api.clock.wall(),
        cluster: api.cluster.borrow().clone(),
    };
    let common = vec![
        ("group", api.group.to_string()),
        ("site", api.site.to_string()),
    ];
    expose(metrics::FAMILIES, common, &scraped)
}
