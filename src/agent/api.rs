//! What the agent answers: orders of the controller, carried by whomever; questions of the other
//! agent; and, in plain HTTP, whether users may be sent here.

use std::sync::Arc;

use axum::extract::{ConnectInfo, DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use tokio::sync::{mpsc, oneshot, watch};

use super::keeper::{News, Shown};
use crate::adapters::keys::{Signed, VerifyingKey};
use crate::adapters::tls::{Identity, PeerClient, PeerIdentity};
use crate::engine::topology::{GroupName, SiteName};
use crate::ports::{Clock, EffectError};
use crate::wire::{
    MESSAGE_LIMIT, ORDER_CONTEXT, ORDER_PATH, Order, OrderAnswer, PEER_PATH, PeerAnswer,
    PeerQuestion, RELAY_PATH,
};

/// What the handlers work with.
#[derive(Debug, Clone)]
pub struct Api {
    /// Our group.
    pub group: GroupName,
    /// The other site.
    pub peer_site: SiteName,
    /// The other agent.
    pub peer: PeerClient,
    /// The key of the controller.
    pub controller: VerifyingKey,
    /// The keeper.
    pub news: mpsc::Sender<News>,
    /// What it shows.
    pub shown: watch::Receiver<Shown>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
}

/// The API for the controller and the other agent.
pub fn router(api: Api) -> Router {
    Router::new()
        .route(ORDER_PATH, post(order))
        .route(RELAY_PATH, post(relay))
        .route(PEER_PATH, post(peer))
        .layer(DefaultBodyLimit::max(MESSAGE_LIMIT))
        .with_state(api)
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

/// Hands an order to the keeper. Whoever carried it: its signature is what counts.
async fn order(
    State(api): State<Api>,
    ConnectInfo(peer): ConnectInfo<PeerIdentity>,
    Json(signed): Json<Signed<Order>>,
) -> Result<Json<OrderAnswer>, Denied> {
    let known = match &peer.identity {
        Identity::Controller => true,
        Identity::Agent { group, site } => *group == api.group && *site == api.peer_site,
        Identity::Observer { .. } | Identity::Operator(_) | Identity::Other(_) => false,
    };
    if !known {
        return Err(denied(&peer, "give orders"));
    }
    let order = signed
        .verify(&api.controller, ORDER_CONTEXT)
        .map_err(|error| {
            tracing::warn!(%error, identity = %peer.identity, "an order with a wrong signature");
            (
                StatusCode::FORBIDDEN,
                format!("the order is not the controller's: {error}"),
            )
        })?;
    let (sender, answer) = oneshot::channel();
    let gone = || EffectError::Failed("the agent is stopping".to_owned());
    let told = api
        .news
        .send(News::Ordered(Box::new(order.clone()), sender))
        .await;
    if told.is_err() {
        return Ok(Json(Err(gone())));
    }
    Ok(Json(answer.await.unwrap_or_else(|_closed| Err(gone()))))
}

/// Carries an order to the other agent, and its answer back.
async fn relay(
    State(api): State<Api>,
    ConnectInfo(peer): ConnectInfo<PeerIdentity>,
    Json(signed): Json<Signed<Order>>,
) -> Result<Json<OrderAnswer>, Denied> {
    if peer.identity != Identity::Controller {
        return Err(denied(&peer, "have orders relayed"));
    }
    let order = signed
        .verify(&api.controller, ORDER_CONTEXT)
        .map_err(|error| {
            (
                StatusCode::FORBIDDEN,
                format!("the order is not the controller's: {error}"),
            )
        })?;
    let within = order.expires.since(api.clock.wall());
    let answer = api
        .peer
        .post::<_, OrderAnswer>(ORDER_PATH, &signed, within)
        .await;
    Ok(Json(answer.unwrap_or_else(|error| Err(error.into()))))
}

async fn peer(
    State(api): State<Api>,
    ConnectInfo(peer): ConnectInfo<PeerIdentity>,
    Json(question): Json<PeerQuestion>,
) -> Result<Json<PeerAnswer>, Denied> {
    let expected = Identity::Agent {
        group: api.group.clone(),
        site: api.peer_site.clone(),
    };
    if peer.identity != expected || question.site != api.peer_site {
        return Err(denied(&peer, "ask as the other agent"));
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
    answer.await.map(Json).map_err(|_closed| stopping(()))
}

/// 200 only where users may write: the site holds the right, and its database runs as a primary.
async fn traffic_ready(State(api): State<Api>) -> (StatusCode, String) {
    let shown = api.shown.borrow().clone();
    let held = shown
        .right
        .is_some_and(|until| until.is_none_or(|until| until > api.clock.now()));
    if held && shown.primary {
        (StatusCode::OK, format!("ready in epoch {}\n", shown.epoch))
    } else {
        let why = if held {
            "the database is down"
        } else {
            "no right to take writes"
        };
        (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("{why}, epoch {}\n", shown.epoch),
        )
    }
}

async fn metrics(State(api): State<Api>) -> String {
    let shown = api.shown.borrow().clone();
    let held = shown
        .right
        .is_some_and(|until| until.is_none_or(|until| until > api.clock.now()));
    let left = shown
        .right
        .flatten()
        .map_or(0, |until| until.since(api.clock.now()).as_millis());
    format!(
        "failover_agent_epoch {}\nfailover_agent_holds_right {}\nfailover_agent_right_left_ms {left}\nfailover_agent_primary {}\nfailover_agent_fenced {}\n",
        shown.epoch,
        u8::from(held),
        u8::from(shown.primary),
        u8::from(shown.facts.fenced.is_some()),
    )
}
