//! Operators' commands that take effect at once: hold, release, and adopt.

use axum::Json;
use axum::extract::{ConnectInfo, State};
use axum::http::StatusCode;

use super::{Api, Asked, Done, Incoming, Input, PeerIdentity, Problem, Verb, person, reason};
use crate::wire::{AdoptAsk, AdoptInstanceAsk, HoldAsk, ReleaseAsk};

pub(super) async fn hold(
    State(api): State<Api>,
    ConnectInfo(peer): ConnectInfo<PeerIdentity>,
    Incoming(written): Incoming<HoldAsk>,
) -> Done {
    let mut ask = written.message;
    let name = person(&api, &peer, Verb::Hold)?;
    ask.reason = reason(&ask.reason)?;
    let done = api
        .control
        .ask(|answer| Input::Asked(name, Asked::Hold(ask, answer)))
        .await?;
    done.map(Json)
        .map_err(|why| Problem(StatusCode::BAD_REQUEST, why))
}

pub(super) async fn release(
    State(api): State<Api>,
    ConnectInfo(peer): ConnectInfo<PeerIdentity>,
    Incoming(written): Incoming<ReleaseAsk>,
) -> Done {
    let mut ask = written.message;
    let name = person(&api, &peer, Verb::Release)?;
    ask.reason = reason(&ask.reason)?;
    let done = api
        .control
        .ask(|answer| Input::Asked(name, Asked::Release(ask, answer)))
        .await?;
    done.map(Json)
        .map_err(|why| Problem(StatusCode::BAD_REQUEST, why))
}

pub(super) async fn adopt(
    State(api): State<Api>,
    ConnectInfo(peer): ConnectInfo<PeerIdentity>,
    Incoming(written): Incoming<AdoptAsk>,
) -> Done {
    let mut ask = written.message;
    let name = person(&api, &peer, Verb::Adopt)?;
    ask.reason = reason(&ask.reason)?;
    let asked = |answer| Input::Asked(name, Asked::Adopt(ask, answer));
    let done = api.control.ask(asked).await?;
    done.map(Json)
        .map_err(|why| Problem(StatusCode::BAD_REQUEST, why))
}

pub(super) async fn adopt_instance(
    State(api): State<Api>,
    ConnectInfo(peer): ConnectInfo<PeerIdentity>,
    Incoming(written): Incoming<AdoptInstanceAsk>,
) -> Done {
    let mut ask = written.message;
    let name = person(&api, &peer, Verb::Adopt)?;
    ask.reason = reason(&ask.reason)?;
    let asked = |answer| Input::Asked(name, Asked::AdoptInstance(ask, answer));
    let done = api.control.ask(asked).await?;
    done.map(Json)
        .map_err(|why| Problem(StatusCode::BAD_REQUEST, why))
}
